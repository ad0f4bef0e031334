"""DICOM series for tests, written by ITK."""

from __future__ import annotations

import itk
import numpy as np

from shared.transform_io.images import keep_locale


@keep_locale()
def write_dicom(folder, itk_image, series: str, skip: int = -1) -> None:
    """Write an ITK volume slice by slice; each carries its own place."""
    folder.mkdir(exist_ok=True)
    array = itk.array_from_image(itk_image)
    direction = np.asarray(itk.array_from_matrix(itk_image.GetDirection()))
    spacing, origin = np.array(itk_image.GetSpacing()), np.array(itk_image.GetOrigin())
    for k in range(array.shape[0]):
        if k == skip:
            continue
        part = itk.image_from_array(np.ascontiguousarray(array[k : k + 1]))
        part.SetSpacing(spacing.tolist())
        part.SetDirection(itk_image.GetDirection())
        place = origin + direction[:, 2] * spacing[2] * k
        part.SetOrigin(place.tolist())
        tags = part.GetMetaDataDictionary()
        tags["0008|0060"] = "CT"
        tags["0020|000d"], tags["0020|000e"] = "1.2.826.0.1.3680043.2.1125.1", f"1.2.826.0.1.3680043.2.1125.1.{series}"
        tags["0020|0013"] = str(k + 1)
        tags["0020|0032"] = "\\".join(f"{x:.6f}" for x in place)
        tags["0020|0037"] = "\\".join(f"{x:.8f}" for x in direction[:, :2].T.ravel())
        io = itk.GDCMImageIO.New()
        io.SetKeepOriginalUID(True)
        writer = itk.ImageFileWriter[type(part)].New()
        writer.SetInput(part)
        writer.SetImageIO(io)
        # Names in no order: the place decides.
        writer.SetFileName(str(folder / f"{series}_{(7 * k) % 101:03d}.dcm"))
        writer.Update()
