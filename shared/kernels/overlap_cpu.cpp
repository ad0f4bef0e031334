// Sums for the Dice overlap of maps that are pulled back by fields, and their gradient to the fields, without the warped
// maps: of 36 classes they would be most of what a training step holds.
//
// Maps of labels are zero nearly everywhere. They are divided into cells of 8 voxels an axis, and a bit for each of up to
// 64 channels says whether the cell holds any of it: what a row of positions does not meet is not looked at.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "sampling.h"
#include "vectors.h"

namespace registration {
namespace {

constexpr int64_t CELL_SHIFT = 3, CHANNELS = 64;
// Rows summed in one piece, whoever sums them.
constexpr int64_t ROWS_A_PIECE = 256;

inline int64_t cells_along(int64_t size) { return ((size - 1) >> CELL_SHIFT) + 1; }

// Maps (B, L, *S) and the cells they fill (B, L / 64, *cells), looked at through a field (B, d, *T) or, without one, as
// they are.
template <typename T, int D>
struct Source {
  Shape<D> shape;
  const T *maps, *field;
  const int64_t* filled;
  std::array<int64_t, D> cells;
  std::array<int64_t, ROWS<D>> rows;

  Source(const at::Tensor& image, const at::Tensor& displacement, const at::Tensor& grid, const at::Tensor& occupied)
      : shape(image, grid),
        maps(image.const_data_ptr<T>()),
        field(displacement.numel() > 0 ? displacement.const_data_ptr<T>() : nullptr),
        filled(occupied.const_data_ptr<int64_t>()),
        rows(row_offsets<D>(shape)) {
    for (int a = 0; a < D; ++a) cells[a] = cells_along(shape.in[a]);
  }
};

template <bool LESS>
inline int32_t extreme(Integers v) {
  auto pick = [](const Integers& a, const Integers& b) { return LESS ? (a < b ? a : b) : (a > b ? a : b); };
  v = pick(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = pick(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = pick(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  v = pick(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return v[0];
}

// LANES positions in one source.
template <typename T, int D, bool SLOPES>
struct View {
  Block<T, D> block;
  Vector<T> outer[ROWS<D>];
  Corners<T, D> corners;
  Vector<T> first[ROWS<D>], second[ROWS<D>];
  std::array<int64_t, D> low, high;  // voxels met, the last included
  int64_t place, count;              // of the positions in a channel

  void set(const Source<T, D>& s, int64_t n, int64_t row, int64_t k, std::array<T, D> start) {
    const int64_t width = s.shape.out[D - 1];
    place = row * width + k;
    count = std::min<int64_t>(LANES, width - k);
    if (s.field == nullptr) {
      for (int a = 0; a < D; ++a) low[a] = high[a] = static_cast<int64_t>(start[a]);
      low[D - 1] = k;
      high[D - 1] = k + count - 1;
      return;
    }
    start[D - 1] = T(k);
    block.template set<LINEAR_ZEROS, SLOPES>(s.shape, s.field + n * D * s.shape.out_count + place, start, count);
    outer_weights<T, D>(block, outer);
    for (int a = 0; a < D; ++a) {
      low[a] = extreme<true>(block.axes[a].base);
      high[a] = extreme<false>(block.axes[a].base) + 1;
    }
    for (int r = 0; r < ROWS<D>; ++r) first[r] = second[r] = Vector<T>{};
  }

  // A bit for every channel of a chunk that these positions may meet.
  uint64_t channels(const Source<T, D>& s, const int64_t* filled) const {
    uint64_t found = 0;
    std::array<int64_t, D> from, to;
    for (int a = 0; a < D; ++a) {
      from[a] = low[a] >> CELL_SHIFT;
      to[a] = high[a] >> CELL_SHIFT;
    }
    for (int64_t z = D == 3 ? from[0] : 0; z <= (D == 3 ? to[0] : 0); ++z) {
      for (int64_t y = from[D - 2]; y <= to[D - 2]; ++y) {
        const int64_t* line = filled + (z * s.cells[D - 2] + y) * s.cells[D - 1];
        for (int64_t x = from[D - 1]; x <= to[D - 1]; ++x) found |= static_cast<uint64_t>(line[x]);
      }
    }
    return found;
  }

  Vector<T> value(const Source<T, D>& s, const T* map) {
    if (s.field == nullptr) return load(map + place, count);
    corners.load(map, s.rows, block.offset);
    Vector<T> left{}, right{};
    for (int r = 0; r < ROWS<D>; ++r) {
      left += outer[r] * corners.first[r];
      right += outer[r] * corners.second[r];
    }
    return block.axes[D - 1].low * left + block.axes[D - 1].high * right;
  }

  // After `value` of the same map: add its part of the gradient.
  void pull(Vector<T> g) {
    for (int r = 0; r < ROWS<D>; ++r) {
      first[r] += g * corners.first[r];
      second[r] += g * corners.second[r];
    }
  }

  void finish(const Source<T, D>& s, T* gradient) const {
    std::array<Vector<T>, D> sums{};
    for (int r = 0; r < ROWS<D>; ++r) add_slopes<T, D>(block, r, first[r], second[r], outer[r], sums);
    for (int a = 0; a < D; ++a) store<T>(sums[a], gradient + a * s.shape.out_count + place, count);
  }
};

// Call `work(view of p, view of q, channel)` for all that a row of positions meets; `after` when a block is through.
template <typename T, int D, bool SLOPES, typename F, typename G>
void walk(const Source<T, D>& p, const Source<T, D>& q, int64_t n, int64_t row, F work, G after) {
  const auto start = start_of<T, D>(p.shape, row);
  const int64_t channels = p.shape.channels, chunks = (channels + CHANNELS - 1) / CHANNELS;
  auto cells_of = [&](const Source<T, D>& s) {
    int64_t product = 1;
    for (int a = 0; a < D; ++a) product *= s.cells[a];
    return product;
  };
  View<T, D, SLOPES> a, b;
  for (int64_t k = 0; k < p.shape.out[D - 1]; k += LANES) {
    a.set(p, n, row, k, start);
    b.set(q, n, row, k, start);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const uint64_t in_p = a.channels(p, p.filled + (n * chunks + chunk) * cells_of(p));
      const uint64_t in_q = b.channels(q, q.filled + (n * chunks + chunk) * cells_of(q));
      for (uint64_t left = in_p | in_q; left != 0; left &= left - 1) {
        const int bit = __builtin_ctzll(left);
        work(a, b, chunk * CHANNELS + bit, (in_p >> bit & 1) != 0, (in_q >> bit & 1) != 0);
      }
    }
    after(a, b);
  }
}

// Lanes behind the last position are left out.
template <typename T>
inline Vector<T> first_lanes(const Vector<T>& v, int64_t count) {
  return count == LANES ? v : (ramp<T>() < T(count) ? v : Vector<T>{});
}

template <typename T, int D>
void sum_piece(const Source<T, D>& p, const Source<T, D>& q, int64_t n, int64_t begin, int64_t end, double* sums) {
  const int64_t channels = p.shape.channels;
  const T *maps_p = p.maps + n * channels * p.shape.in_count, *maps_q = q.maps + n * channels * q.shape.in_count;
  std::vector<T> totals(2 * channels * LANES);
  auto add = [&](int64_t index, const Vector<T>& value) {
    T* to = totals.data() + index * LANES;
    write(read<Vector<T>>(to) + value, to);
  };
  for (int64_t row = begin; row < end; ++row) {
    walk<T, D, false>(
        p, q, n, row,
        [&](auto& a, auto& b, int64_t c, bool in_p, bool in_q) {
          const Vector<T> x = in_p ? first_lanes<T>(a.value(p, maps_p + c * p.shape.in_count), a.count) : Vector<T>{};
          const Vector<T> y = in_q ? first_lanes<T>(b.value(q, maps_q + c * q.shape.in_count), a.count) : Vector<T>{};
          if (in_p && in_q) add(2 * c, x * y);
          add(2 * c + 1, x * x + y * y);
        },
        [](auto&, auto&) {});
  }
  for (int64_t i = 0; i < 2 * channels; ++i) {
    for (int l = 0; l < LANES; ++l) sums[i] += totals[i * LANES + l];
  }
}

// `slopes` are the gradients to the sums of each channel: of products, then of squares.
template <typename T, int D>
void adjoint_piece(const Source<T, D>& p, const Source<T, D>& q, int64_t n, int64_t begin, int64_t end, const T* slopes,
                   T* to_p, T* to_q) {
  const int64_t channels = p.shape.channels, out = D * p.shape.out_count;
  const T *maps_p = p.maps + n * channels * p.shape.in_count, *maps_q = q.maps + n * channels * q.shape.in_count;
  for (int64_t row = begin; row < end; ++row) {
    walk<T, D, true>(
        p, q, n, row,
        [&](auto& a, auto& b, int64_t c, bool in_p, bool in_q) {
          const Vector<T> x = in_p ? a.value(p, maps_p + c * p.shape.in_count) : Vector<T>{};
          const Vector<T> y = in_q ? b.value(q, maps_q + c * q.shape.in_count) : Vector<T>{};
          const T cross = slopes[2 * c], square = 2 * slopes[2 * c + 1];
          if (in_p && p.field != nullptr) a.pull(cross * y + square * x);
          if (in_q && q.field != nullptr) b.pull(cross * x + square * y);
        },
        [&](auto& a, auto& b) {
          if (p.field != nullptr) a.finish(p, to_p + n * out);
          if (q.field != nullptr) b.finish(q, to_q + n * out);
        });
  }
}

// -- the operators -----------------------------------------------------------------------------------------------------

template <typename F>
void dispatch(const at::Tensor& maps, F run) {
  AT_DISPATCH_FLOATING_TYPES(maps.scalar_type(), "warped_overlap", [&] {
    if (maps.dim() == 4) {
      run(scalar_t{}, std::integral_constant<int, 2>{});
    } else {
      run(scalar_t{}, std::integral_constant<int, 3>{});
    }
  });
}

template <typename T, int D>
void fill_cells(const Shape<D>& shape, const T* maps, int64_t* filled) {
  const int64_t chunks = (shape.channels + CHANNELS - 1) / CHANNELS, width = shape.in[D - 1];
  std::array<int64_t, D> cells;
  int64_t count = 1;
  for (int a = 0; a < D; ++a) count *= cells[a] = cells_along(shape.in[a]);
  const int64_t layers = cells[0], deep = int64_t(1) << CELL_SHIFT, rows_a_plane = shape.in_count / shape.in[0] / width;
  at::parallel_for(0, shape.image_batch * layers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t n = job / layers, layer = job % layers;
      const int64_t first = layer * deep * rows_a_plane, last = std::min((layer + 1) * deep, shape.in[0]) * rows_a_plane;
      for (int64_t c = 0; c < shape.channels; ++c) {
        const T* map = maps + (n * shape.channels + c) * shape.in_count;
        int64_t* found = filled + (n * chunks + c / CHANNELS) * count;
        for (int64_t row = first; row < last; ++row) {
          const int64_t line = D == 3 ? layer * cells[D - 2] + (row % rows_a_plane >> CELL_SHIFT) : row >> CELL_SHIFT;
          for (int64_t cell = 0; cell < cells[D - 1]; ++cell) {
            const T* from = map + row * width + cell * deep;
            const int64_t some = std::min(deep, width - cell * deep);
            bool any = false;
            for (int64_t x = 0; x < some; ++x) any |= from[x] != T(0);  // NaN is
            if (any) found[line * cells[D - 1] + cell] |= int64_t(uint64_t(1) << (c % CHANNELS));
          }
        }
      }
    }
  });
}

// (B, L, *S) -> (B, L / 64, *cells), a bit a channel.
at::Tensor filled_cells(const at::Tensor& maps) {
  TORCH_CHECK(maps.is_contiguous(), "expected contiguous maps");
  auto sizes = maps.sizes().vec();
  sizes[1] = (sizes[1] + CHANNELS - 1) / CHANNELS;
  for (size_t a = 2; a < sizes.size(); ++a) sizes[a] = cells_along(sizes[a]);
  at::Tensor filled = at::zeros(sizes, maps.options().dtype(at::kLong));
  dispatch(maps, [&](auto zero, auto dims) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    fill_cells<T, D>(Shape<D>(maps, maps), maps.const_data_ptr<T>(), filled.mutable_data_ptr<int64_t>());
  });
  return filled;
}

void check(const at::Tensor& maps, const at::Tensor& field, const at::Tensor& filled) {
  TORCH_CHECK(maps.is_contiguous() && field.is_contiguous() && filled.is_contiguous(), "expected contiguous tensors");
  TORCH_CHECK(maps.dim() == 4 || maps.dim() == 5, "expected maps (B, L, *S)");
  const bool moves = field.numel() > 0;
  TORCH_CHECK(!moves || (field.dim() == maps.dim() && field.size(1) == maps.dim() - 2 && field.size(0) == maps.size(0) &&
                         field.scalar_type() == maps.scalar_type()),
              "expected a field (B, d, *T) of the maps' type");
  for (int64_t a = 2; a < maps.dim(); ++a) {
    TORCH_CHECK(maps.size(a) > 1 && maps.size(a) < (1 << 22), "expected axes of 2 to 2^22 voxels");
    TORCH_CHECK(filled.size(a) == cells_along(maps.size(a)), "expected the cells of these maps");
  }
}

// The grid on which both are compared: that of a field, or of maps that stand still.
const at::Tensor& grid_of(const at::Tensor& p, const at::Tensor& p_field, const at::Tensor& p_filled, const at::Tensor& q,
                          const at::Tensor& q_field, const at::Tensor& q_filled) {
  check(p, p_field, p_filled);
  check(q, q_field, q_filled);
  TORCH_CHECK(p.dim() == q.dim() && p.size(0) == q.size(0) && p.size(1) == q.size(1), "expected maps (B, L, *S) alike");
  TORCH_CHECK(p.scalar_type() == q.scalar_type(), "expected one dtype");
  const at::Tensor& grid = p_field.numel() > 0 ? p_field : q_field.numel() > 0 ? q_field : q;
  for (int64_t a = 2; a < p.dim(); ++a) {
    TORCH_CHECK((p_field.numel() > 0 ? p_field : p).size(a) == grid.size(a), "expected one grid");
    TORCH_CHECK((q_field.numel() > 0 ? q_field : q).size(a) == grid.size(a), "expected one grid");
  }
  return grid;
}

// (B, L, 2): for every channel the sum of products and the sum of both squares.
at::Tensor warped_overlap(const at::Tensor& p, const at::Tensor& p_field, const at::Tensor& p_filled, const at::Tensor& q,
                          const at::Tensor& q_field, const at::Tensor& q_filled) {
  at::Tensor sums;
  dispatch(p, [&](auto zero, auto dims) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    const at::Tensor& grid = grid_of(p, p_field, p_filled, q, q_field, q_filled);
    const Source<T, D> a(p, p_field, grid, p_filled), b(q, q_field, grid, q_filled);
    const int64_t batch = p.size(0), rows = a.shape.rows(), pieces = (rows + ROWS_A_PIECE - 1) / ROWS_A_PIECE;
    sums = at::zeros({batch, pieces, p.size(1), 2}, p.options().dtype(at::kDouble));
    at::parallel_for(0, batch * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) {
        const int64_t first = job % pieces * ROWS_A_PIECE;
        sum_piece<T, D>(a, b, job / pieces, first, std::min(first + ROWS_A_PIECE, rows),
                        sums.mutable_data_ptr<double>() + job * p.size(1) * 2);
      }
    });
  });
  return sums.sum(1).to(p.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> warped_overlap_adjoint(const at::Tensor& grad, const at::Tensor& p,
                                                          const at::Tensor& p_field, const at::Tensor& p_filled,
                                                          const at::Tensor& q, const at::Tensor& q_field,
                                                          const at::Tensor& q_filled) {
  TORCH_CHECK(grad.is_contiguous(), "expected a contiguous gradient");
  at::Tensor to_p = at::empty_like(p_field), to_q = at::empty_like(q_field);
  dispatch(p, [&](auto zero, auto dims) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    const at::Tensor& grid = grid_of(p, p_field, p_filled, q, q_field, q_filled);
    const Source<T, D> a(p, p_field, grid, p_filled), b(q, q_field, grid, q_filled);
    const int64_t batch = p.size(0), rows = a.shape.rows(), pieces = (rows + ROWS_A_PIECE - 1) / ROWS_A_PIECE;
    at::parallel_for(0, batch * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) {
        const int64_t n = job / pieces, first = job % pieces * ROWS_A_PIECE;
        adjoint_piece<T, D>(a, b, n, first, std::min(first + ROWS_A_PIECE, rows),
                            grad.const_data_ptr<T>() + n * p.size(1) * 2, to_p.mutable_data_ptr<T>(),
                            to_q.mutable_data_ptr<T>());
      }
    });
  });
  return {to_p, to_q};
}

}  // namespace
}  // namespace registration

// operators.py defines them.
TORCH_LIBRARY_IMPL(registration, CPU, m) {
  m.impl("filled_cells", &registration::filled_cells);
  m.impl("warped_overlap", &registration::warped_overlap);
  m.impl("warped_overlap_adjoint", &registration::warped_overlap_adjoint);
}
