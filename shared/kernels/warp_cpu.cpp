// Warping on the CPU: identity + displacement + linear or nearest sampling in one pass, and its two adjoints.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "sampling.h"
#include "slabs.h"
#include "vectors.h"

namespace registration {
namespace {

// -- forward -----------------------------------------------------------------------------------------------------------

template <typename T, int D, Sampling MODE>
void sample_rows(const Shape<D>& shape, const T* images, const T* fields, T* out, int64_t begin, int64_t end, bool add) {
  const auto offsets = row_offsets<D>(shape);
  const int64_t width = shape.out[D - 1], rows = shape.rows();
  Block<T, D> block;
  Corners<T, D> corners;
  Vector<T> outer[ROWS<D>];
  for (int64_t job = begin; job < end; ++job) {
    const int64_t n = job / rows, row = job % rows;
    const T* image = images + (shape.image_batch == 1 ? 0 : n) * shape.channels * shape.in_count;
    const T* field = fields + (shape.field_batch == 1 ? 0 : n) * D * shape.out_count + row * width;
    T* target = out + n * shape.channels * shape.out_count + row * width;
    auto start = start_of<T, D>(shape, row);
    for (int64_t k = 0; k < width; k += LANES) {
      const int64_t count = std::min<int64_t>(LANES, width - k);
      start[D - 1] = T(k);
      block.template set<MODE, false>(shape, field + k, start, count);
      outer_weights<T, D>(block, outer);
      const auto& x = block.axes[D - 1];
      for (int64_t c = 0; c < shape.channels; ++c) {
        Vector<T> low{}, high{};
        corners.load(image + c * shape.in_count, offsets, block.offset);
        for (int r = 0; r < ROWS<D>; ++r) {
          low += outer[r] * corners.first[r];
          high += outer[r] * corners.second[r];
        }
        Vector<T> sum = x.low * low + x.high * high;
        if (add) sum += load(field + c * shape.out_count + k, count);
        store<T>(sum, target + c * shape.out_count + k, count);
      }
    }
  }
}

// -- adjoint to the displacement ---------------------------------------------------------------------------------------

template <typename T, int D, Sampling MODE>
void field_adjoint_rows(const Shape<D>& shape, const T* images, const T* fields, const T* grads, T* out, int64_t begin,
                        int64_t end) {
  const auto offsets = row_offsets<D>(shape);
  const int64_t width = shape.out[D - 1], rows = shape.rows();
  Block<T, D> block;
  Corners<T, D> corners;
  Vector<T> outer[ROWS<D>];
  for (int64_t job = begin; job < end; ++job) {
    const int64_t n = job / rows, row = job % rows;
    const T* image = images + (shape.image_batch == 1 ? 0 : n) * shape.channels * shape.in_count;
    const T* field = fields + (shape.field_batch == 1 ? 0 : n) * D * shape.out_count + row * width;
    const T* grad = grads + n * shape.channels * shape.out_count + row * width;
    T* target = out + n * D * shape.out_count + row * width;
    auto start = start_of<T, D>(shape, row);
    for (int64_t k = 0; k < width; k += LANES) {
      const int64_t count = std::min<int64_t>(LANES, width - k);
      start[D - 1] = T(k);
      block.template set<MODE, true>(shape, field + k, start, count);
      outer_weights<T, D>(block, outer);
      Vector<T> first[ROWS<D>]{}, second[ROWS<D>]{};  // the gradient times the image, summed over channels
      for (int64_t c = 0; c < shape.channels; ++c) {
        const Vector<T> g = load(grad + c * shape.out_count + k, count);
        corners.load(image + c * shape.in_count, offsets, block.offset);
        for (int r = 0; r < ROWS<D>; ++r) {
          first[r] += g * corners.first[r];
          second[r] += g * corners.second[r];
        }
      }
      std::array<Vector<T>, D> sums{};
      for (int r = 0; r < ROWS<D>; ++r) add_slopes<T, D>(block, r, first[r], second[r], outer[r], sums);
      for (int a = 0; a < D; ++a) store<T>(sums[a], target + a * shape.out_count + k, count);
    }
  }
}

// -- adjoint to the image ----------------------------------------------------------------------------------------------

// Every position adds to four numbers of its own cell in each of the planes that it meets: the corners of the last two
// axes lie side by side, so that what neighbouring positions add to is one place or two places apart, never half of each,
// which would cost a wait. Afterwards each voxel collects its share from the four cells around it.
constexpr int CELL = 4;
constexpr int64_t CHANNELS_AT_ONCE = 4;

template <typename T>
using Cell = typename VectorOf<T, CELL>::Type;

// Four numbers of each lane, side by side.
template <typename T>
inline void interleave(const Vector<T>& a, const Vector<T>& b, const Vector<T>& c, const Vector<T>& d, T* to) {
  using V = Vector<T>;
  const V ab0 = __builtin_shufflevector(a, b, 0, 16, 0, 0, 1, 17, 0, 0, 2, 18, 0, 0, 3, 19, 0, 0);
  const V ab1 = __builtin_shufflevector(a, b, 4, 20, 0, 0, 5, 21, 0, 0, 6, 22, 0, 0, 7, 23, 0, 0);
  const V ab2 = __builtin_shufflevector(a, b, 8, 24, 0, 0, 9, 25, 0, 0, 10, 26, 0, 0, 11, 27, 0, 0);
  const V ab3 = __builtin_shufflevector(a, b, 12, 28, 0, 0, 13, 29, 0, 0, 14, 30, 0, 0, 15, 31, 0, 0);
  const V cd0 = __builtin_shufflevector(c, d, 0, 0, 0, 16, 0, 0, 1, 17, 0, 0, 2, 18, 0, 0, 3, 19);
  const V cd1 = __builtin_shufflevector(c, d, 0, 0, 4, 20, 0, 0, 5, 21, 0, 0, 6, 22, 0, 0, 7, 23);
  const V cd2 = __builtin_shufflevector(c, d, 0, 0, 8, 24, 0, 0, 9, 25, 0, 0, 10, 26, 0, 0, 11, 27);
  const V cd3 = __builtin_shufflevector(c, d, 0, 0, 12, 28, 0, 0, 13, 29, 0, 0, 14, 30, 0, 0, 15, 31);
  auto blend = [](const V& x, const V& y) {
    return __builtin_shufflevector(x, y, 0, 1, 18, 19, 4, 5, 22, 23, 8, 9, 26, 27, 12, 13, 30, 31);
  };
  write(blend(ab0, cd0), to);
  write(blend(ab1, cd1), to + LANES);
  write(blend(ab2, cd2), to + 2 * LANES);
  write(blend(ab3, cd3), to + 3 * LANES);
}

// Add rows of one sample to the cells of planes `slab.low` on, a buffer a channel.
template <typename T, int D, Sampling MODE>
void scatter_rows(const Shape<D>& shape, const T* field, const T* grad, const Slab& slab, int64_t channels, T* cells,
                  int64_t cells_a_channel) {
  const int64_t width = shape.out[D - 1], per_plane = shape.rows_per_plane(), plane = shape.in_count / shape.in[0];
  Block<T, D> block;
  T shares[CELL * LANES], front[LANES], back[LANES];
  for (int64_t row = slab.begin * per_plane; row < slab.end * per_plane; ++row) {
    auto start = start_of<T, D>(shape, row);
    for (int64_t k = 0; k < width; k += LANES) {
      const int64_t count = std::min<int64_t>(LANES, width - k);
      start[D - 1] = T(k);
      block.template set<MODE, false>(shape, field + row * width + k, start, count);
      const auto &x = block.axes[D - 1], &y = block.axes[D - 2], &z = block.axes[0];
      interleave<T>(y.low * x.low, y.low * x.high, y.high * x.low, y.high * x.high, shares);
      for (int64_t c = 0; c < channels; ++c) {
        const Vector<T> g = load(grad + c * shape.out_count + row * width + k, count);
        write(D == 3 ? g * z.low : g, front);
        write(g * z.high, back);
        T* channel = cells + c * cells_a_channel;
        for (int64_t l = 0; l < count; ++l) {
          const auto share = read<Cell<T>>(shares + CELL * l);
          T* cell = channel + CELL * (block.offset[l] - slab.low * plane);
          write(read<Cell<T>>(cell) + front[l] * share, cell);
          if constexpr (D == 3) {
            T* behind = cell + CELL * plane;
            __builtin_prefetch(behind + AHEAD * CELL * shape.in[2], 1);
            write(read<Cell<T>>(behind) + back[l] * share, behind);
          }
        }
      }
    }
  }
}

// The numbers of LANES cells, a vector for each of the four.
template <typename T>
inline std::array<Vector<T>, CELL> load_cells(const T* from) {
  using V = Vector<T>;
  const V a = read<V>(from), b = read<V>(from + LANES), c = read<V>(from + 2 * LANES), d = read<V>(from + 3 * LANES);
  const V ab = __builtin_shufflevector(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const V cd = __builtin_shufflevector(c, d, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const V ab2 = __builtin_shufflevector(a, b, 2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
  const V cd2 = __builtin_shufflevector(c, d, 2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
  auto lower = [](const V& x, const V& y) {
    return __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  };
  auto upper = [](const V& x, const V& y) {
    return __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  };
  return {lower(ab, cd), upper(ab, cd), lower(ab2, cd2), upper(ab2, cd2)};
}

// Collect rows of voxels from their cells; cells have room for LANES more behind the last.
template <typename T>
void collect_rows(const T* cells, int64_t rows, int64_t height, int64_t width, T* out) {
  std::vector<T> right(width + LANES + 1);  // shares of the voxel after
  for (int64_t row = 0; row < rows; ++row, out += width) {
    const T* here = cells + CELL * row * width;
    const T* above = row % height > 0 ? here - CELL * width : nullptr;
    right[0] = T(0);
    for (int64_t x = 0; x < width; x += LANES) {
      const int64_t count = std::min<int64_t>(LANES, width - x);
      auto shares = load_cells(here + CELL * x);
      if (above != nullptr) {
        const auto more = load_cells(above + CELL * x);
        shares[0] += more[2];
        shares[1] += more[3];
      }
      write(shares[1], right.data() + x + 1);
      store<T>(load(out + x, count) + shares[0] + read<Vector<T>>(right.data() + x), out + x, count);
    }
  }
}

template <typename T, int D>
std::vector<Slab> cut(const Shape<D>& shape, const T* field) {
  const int64_t planes = shape.out[0], per_plane = shape.out_count / planes;
  std::vector<Slab> reach(planes);
  at::parallel_for(0, planes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) reach[i] = reach_of_plane<1>(i, field + i * per_plane, per_plane, shape.in[0]);
  });
  return merge(reach, shape.in[0]);
}

template <typename T, int D, Sampling MODE>
void image_adjoint(const Shape<D>& shape, const T* fields, const T* grads, T* out) {
  const int64_t plane = shape.in_count / shape.in[0], width = shape.in[D - 1];
  std::vector<std::vector<Slab>> slabs;
  for (int64_t n = 0; n < shape.field_batch; ++n) slabs.push_back(cut<T, D>(shape, fields + n * D * shape.out_count));
  run_slabs(shape.batch, shape.image_batch == 1, slabs, [&](int64_t n, Slab slab) {
    const T* field = fields + (shape.field_batch == 1 ? 0 : n) * D * shape.out_count;
    const T* grad = grads + n * shape.channels * shape.out_count;
    slab.high = std::min(slab.high, shape.in[0] - 1);
    const int64_t begin = slab.low * plane, voxels = (slab.high + 1 - slab.low) * plane;
    T* target = out + (shape.image_batch == 1 ? 0 : n) * shape.channels * shape.in_count + begin;
    const int64_t at_once = std::min(CHANNELS_AT_ONCE, shape.channels), room = CELL * (voxels + LANES);
    std::vector<T> cells(at_once * room);
    for (int64_t c = 0; c < shape.channels; c += at_once) {
      const int64_t channels = std::min(at_once, shape.channels - c);
      if (c > 0) std::fill(cells.begin(), cells.end(), T(0));
      scatter_rows<T, D, MODE>(shape, field, grad + c * shape.out_count, slab, channels, cells.data(), room);
      for (int64_t i = 0; i < channels; ++i) {
        collect_rows(cells.data() + i * room, voxels / width, shape.in[D - 2], width, target + (c + i) * shape.in_count);
      }
    }
  });
}

// -- the operators -----------------------------------------------------------------------------------------------------

// Call `run` with a number of the type, the dimensions and the kind of sampling, the last two as constants.
template <typename F>
void dispatch(const at::Tensor& image, bool nearest, bool border, F run) {
  auto with_dims = [&](auto zero, auto dims) {
    if (nearest && border) return run(zero, dims, std::integral_constant<Sampling, NEAREST_BORDER>{});
    if (nearest) return run(zero, dims, std::integral_constant<Sampling, NEAREST_ZEROS>{});
    if (border) return run(zero, dims, std::integral_constant<Sampling, LINEAR_BORDER>{});
    return run(zero, dims, std::integral_constant<Sampling, LINEAR_ZEROS>{});
  };
  AT_DISPATCH_FLOATING_TYPES(image.scalar_type(), "warp", [&] {
    if (image.dim() == 4) {
      with_dims(scalar_t{}, std::integral_constant<int, 2>{});
    } else {
      with_dims(scalar_t{}, std::integral_constant<int, 3>{});
    }
  });
}

void check(const at::Tensor& image, const at::Tensor& field) {
  TORCH_CHECK(image.is_contiguous() && field.is_contiguous(), "expected contiguous tensors");
  TORCH_CHECK(image.scalar_type() == field.scalar_type(), "expected one dtype");
  TORCH_CHECK(image.dim() == field.dim() && field.size(1) == image.dim() - 2, "expected (B, C, *S) and (B, d, *T)");
  for (int64_t a = 2; a < image.dim(); ++a) {
    TORCH_CHECK(image.size(a) > 1 && image.size(a) < (1 << 22), "expected image axes of 2 to 2^22 voxels");
  }
  TORCH_CHECK(image.numel() / image.size(0) / image.size(1) < (int64_t(1) << 31), "expected less than 2^31 voxels");
}

constexpr int64_t GRAIN = 16384;  // positions that are worth a thread

at::Tensor warp(const at::Tensor& image, const at::Tensor& field, bool nearest, bool border, bool add) {
  check(image, field);
  auto sizes = field.sizes().vec();
  sizes[0] = std::max(image.size(0), field.size(0));
  sizes[1] = image.size(1);
  at::Tensor out = at::empty(sizes, image.options());
  dispatch(image, nearest, border, [&](auto zero, auto dims, auto mode) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    constexpr Sampling MODE = decltype(mode)::value;
    const Shape<D> shape(image, field);
    const int64_t grain = std::max<int64_t>(1, GRAIN / shape.out[D - 1] / shape.channels);
    at::parallel_for(0, shape.batch * shape.rows(), grain, [&](int64_t begin, int64_t end) {
      sample_rows<T, D, MODE>(shape, image.const_data_ptr<T>(), field.const_data_ptr<T>(), out.mutable_data_ptr<T>(),
                              begin, end, add);
    });
  });
  return out;
}

at::Tensor warp_field_adjoint(const at::Tensor& grad, const at::Tensor& image, const at::Tensor& field, bool border) {
  check(image, field);
  TORCH_CHECK(grad.is_contiguous(), "expected a contiguous gradient");
  auto sizes = field.sizes().vec();
  sizes[0] = std::max(image.size(0), field.size(0));
  at::Tensor out = at::empty(sizes, field.options());
  dispatch(image, false, border, [&](auto zero, auto dims, auto mode) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    constexpr Sampling MODE = decltype(mode)::value;
    const Shape<D> shape(image, field);
    const int64_t grain = std::max<int64_t>(1, GRAIN / shape.out[D - 1] / shape.channels);
    at::parallel_for(0, shape.batch * shape.rows(), grain, [&](int64_t begin, int64_t end) {
      field_adjoint_rows<T, D, MODE>(shape, image.const_data_ptr<T>(), field.const_data_ptr<T>(),
                                     grad.const_data_ptr<T>(), out.mutable_data_ptr<T>(), begin, end);
    });
  });
  return field.size(0) == out.size(0) ? out : out.sum(0, /*keepdim=*/true);
}

at::Tensor warp_image_adjoint(const at::Tensor& grad, const at::Tensor& image, const at::Tensor& field, bool nearest,
                              bool border) {
  check(image, field);
  TORCH_CHECK(grad.is_contiguous(), "expected a contiguous gradient");
  at::Tensor out = at::zeros_like(image);
  dispatch(image, nearest, border, [&](auto zero, auto dims, auto mode) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    constexpr Sampling MODE = decltype(mode)::value;
    const Shape<D> shape(image, field);
    image_adjoint<T, D, MODE>(shape, field.const_data_ptr<T>(), grad.const_data_ptr<T>(), out.mutable_data_ptr<T>());
  });
  return out;
}

}  // namespace
}  // namespace registration

// operators.py defines them.
TORCH_LIBRARY_IMPL(registration, CPU, m) {
  m.impl("warp", &registration::warp);
  m.impl("warp_field_adjoint", &registration::warp_field_adjoint);
  m.impl("warp_image_adjoint", &registration::warp_image_adjoint);
}
