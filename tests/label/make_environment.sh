#!/usr/bin/env bash
# Makes a virtual environment in which a MONAI Label server starts: make_environment.sh FOLDER [PYTHON]
# PYTHON (3.10 or 3.11, default python3) is what MONAI Label 0.8.5 runs on. Only a package index is needed.
set -euo pipefail
folder=${1:?"expected the folder of the new environment"}
python=${2:-python3}
torch=2.13.0 torchvision=0.28.0 monai=1.6.1 monailabel=0.8.5

if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))'; then
    echo "$python: found $("$python" --version), expected Python 3.10 or 3.11 (MONAI Label $monailabel needs distutils)" >&2
    exit 1
fi
"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip install -qq --no-input)
# sam2, which MONAI Label asks for, would download a second torch into a build environment of its own.
"${pip[@]}" "torch==$torch" "numpy<2" "setuptools<81" wheel ninja
"${pip[@]}" --no-deps "torchvision==$torchvision"
# pydicom_seg, which MONAI Label 0.8.5 imports, stops at pydicom 3; the bounds of the next two follow from that.
# The last line is what the bundles' own code imports beyond MONAI Label's requirements.
SAM2_BUILD_CUDA=0 "${pip[@]}" --no-build-isolation "torch==$torch" "monai==$monai" "monailabel==$monailabel" \
    "numpy<2" "pydicom<3" "pynetdicom<3" "dicomweb-client<0.60" requests \
    nibabel itk h5py scipy matplotlib pytorch-ignite tensorboard tqdm einops filelock pillow

# A torchvision built for CUDA beside a torch for the CPU misses its compiled operators and refuses to be imported.
# MONAI Label calls none of them: declaring the two names is enough.
if ! "$folder/bin/python" -c "import torchvision" 2> /dev/null; then
    packages=$("$folder/bin/python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    cat > "$packages/declare_torchvision_operators.py" <<'PYTHON'
"""Declare two operators of torchvision, without an implementation, when it is first imported."""

import importlib.abc
import sys


class _Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _Declare())
PYTHON
    echo "import declare_torchvision_operators" > "$packages/declare_torchvision_operators.pth"
fi
"$folder/bin/python" -c "import torchvision, monailabel, monailabel.main, monailabel.client"
echo "$folder: MONAI Label $monailabel is ready"
