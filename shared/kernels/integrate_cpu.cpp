// Scaling and squaring on the CPU: u <- u + u(x + u) again and again, and its adjoint.
//
// Between the steps a field is packed: the d components of a voxel lie side by side, in 3D with a fourth that is 0. The
// two corners of a position along the last axis are then one load for all components, which is most of what a step
// costs. Outside its grid a field counts as its edge value. Positions are voxels; every axis is at least 2 long.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <array>
#include <tuple>
#include <utility>
#include <vector>

#include "slabs.h"
#include "vectors.h"

namespace registration {
namespace {

constexpr int64_t GRAIN = 16384;  // voxels that are worth a thread

template <int D>
struct Grid {
  std::array<int64_t, D> size;
  int64_t batch, count = 1;

  explicit Grid(const at::Tensor& field) : batch(field.size(0)) {
    for (int a = 0; a < D; ++a) count *= size[a] = field.size(2 + a);
  }
  int64_t width() const { return size[D - 1]; }
  int64_t rows() const { return count / width(); }
};

template <int D>
constexpr int PACK = D == 3 ? 4 : 2;  // numbers of a voxel
template <typename T, int D>
using Point = typename VectorOf<T, PACK<D>>::Type;
template <typename T, int D>
using Pair = typename VectorOf<T, 2 * PACK<D>>::Type;  // of two neighbouring voxels
// Room behind a packed field for LANES voxels that are read from its last one on.
template <int D>
constexpr int64_t TAIL = LANES* PACK<D>;

template <typename T>
inline auto first_half(const T& pair) {
  if constexpr (sizeof(pair) == 8 * sizeof(pair[0])) {
    return __builtin_shufflevector(pair, pair, 0, 1, 2, 3);
  } else {
    return __builtin_shufflevector(pair, pair, 0, 1);
  }
}

template <typename T>
inline auto second_half(const T& pair) {
  if constexpr (sizeof(pair) == 8 * sizeof(pair[0])) {
    return __builtin_shufflevector(pair, pair, 4, 5, 6, 7);
  } else {
    return __builtin_shufflevector(pair, pair, 2, 3);
  }
}

// Components of LANES packed voxels, a vector each.
template <typename T, int D>
inline std::array<Vector<T>, D> unpack(const T* packed) {
  std::array<Vector<T>, D> u;
  using V = Vector<T>;
  if constexpr (D == 2) {
    const V a = read<V>(packed), b = read<V>(packed + LANES);
    u[0] = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    u[1] = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  } else {
    const V a = read<V>(packed), b = read<V>(packed + LANES);
    const V c = read<V>(packed + 2 * LANES), d = read<V>(packed + 3 * LANES);
    // Components 0 and 1 of eight voxels, then component 2 of eight.
    const V ab = __builtin_shufflevector(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const V cd = __builtin_shufflevector(c, d, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const V ab2 = __builtin_shufflevector(a, b, 2, 6, 10, 14, 18, 22, 26, 30, 2, 6, 10, 14, 18, 22, 26, 30);
    const V cd2 = __builtin_shufflevector(c, d, 2, 6, 10, 14, 18, 22, 26, 30, 2, 6, 10, 14, 18, 22, 26, 30);
    u[0] = __builtin_shufflevector(ab, cd, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    u[1] = __builtin_shufflevector(ab, cd, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    u[2] = __builtin_shufflevector(ab2, cd2, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  }
  return u;
}

// Where LANES positions of one row lie: corners and weights along each axis, lane by lane.
template <typename T, int D>
struct Block {
  T low[D][LANES], high[D][LANES], moves[D][LANES];
  int32_t offset[LANES];  // voxel of the lowest corner

  template <bool ADJOINT>
  void set(const Grid<D>& grid, const T* packed, const std::array<T, D>& start) {
    const auto u = unpack<T, D>(packed);
    Integers offsets{};
    for (int a = 0; a < D; ++a) {
      const T last = T(grid.size[a] - 1);
      Vector<T> raw = start[a] + u[a];
      if (a == D - 1) raw += ramp<T>();
      const Vector<T> p = clamp<T>(raw, T(0), last);
      const Integers base = __builtin_convertvector(p < last - 1 ? p : fill(last - 1), Integers);
      const Vector<T> above = p - __builtin_convertvector(base, Vector<T>);
      write(T(1) - above, low[a]);
      write(above, high[a]);
      // What is clamped does not move.
      if (ADJOINT) write((raw > T(0)) & (raw < last) ? fill(T(1)) : Vector<T>{}, moves[a]);
      offsets = offsets * static_cast<int32_t>(grid.size[a]) + base;
    }
    write(offsets, offset);
  }
};

// Index of a row's first voxel along each axis.
template <typename T, int D>
inline std::array<T, D> start_of(const Grid<D>& grid, int64_t row) {
  std::array<T, D> start{};
  for (int a = D - 2; a >= 0; --a) {
    start[a] = T(row % grid.size[a]);
    row /= grid.size[a];
  }
  return start;
}

// The field at one position, linearly.
template <typename T, int D>
inline Point<T, D> sample(const Grid<D>& grid, const Block<T, D>& at, int l, const T* field) {
  constexpr int P = PACK<D>;
  using Two = Pair<T, D>;
  const T* corner = field + P * static_cast<int64_t>(at.offset[l]);
  const int64_t down = P * grid.width();
  Two sum;
  if constexpr (D == 2) {
    sum = at.low[0][l] * read<Two>(corner) + at.high[0][l] * read<Two>(corner + down);
  } else {
    const int64_t deep = down * grid.size[1];
    __builtin_prefetch(corner + deep + AHEAD * down);
    const Two front = at.low[1][l] * read<Two>(corner) + at.high[1][l] * read<Two>(corner + down);
    const Two back = at.low[1][l] * read<Two>(corner + deep) + at.high[1][l] * read<Two>(corner + deep + down);
    sum = at.low[0][l] * front + at.high[0][l] * back;
  }
  return at.low[D - 1][l] * first_half(sum) + at.high[D - 1][l] * second_half(sum);
}

// -- one step ----------------------------------------------------------------------------------------------------------

template <typename T, int D>
void square_rows(const Grid<D>& grid, const T* field, T* out, int64_t begin, int64_t end) {
  constexpr int P = PACK<D>;
  const int64_t width = grid.width();
  Block<T, D> block;
  for (int64_t row = begin; row < end; ++row) {
    auto start = start_of<T, D>(grid, row);
    for (int64_t x = 0; x < width; x += LANES) {
      const int64_t count = std::min<int64_t>(LANES, width - x), place = P * (row * width + x);
      start[D - 1] = T(x);
      block.template set<false>(grid, field + place, start);
      for (int l = 0; l < count; ++l) {
        write(read<Point<T, D>>(field + place + P * l) + sample<T, D>(grid, block, l, field), out + place + P * l);
      }
    }
  }
}

// Sum of the products with `g` of each row: (first, second, third or 0, 0), a number for each axis.
template <typename T>
inline auto dot(const T& a, const T& b, const T& c) {
  if constexpr (sizeof(a) == 4 * sizeof(a[0])) {
    const T ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const T zero{};
    const T c0 = __builtin_shufflevector(c, zero, 0, 4, 1, 5) + __builtin_shufflevector(c, zero, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, c0, 0, 1, 4, 5) + __builtin_shufflevector(ab, c0, 2, 3, 6, 7);
  } else {
    return __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
  }
}

// Adjoint of u + u(x + u) at one position: adds to `to` what goes to the corners, returns what goes to the position.
template <typename T, int D>
inline Point<T, D> adjoint(const Grid<D>& grid, const Block<T, D>& at, int l, const T* field, Point<T, D> g, T* to) {
  constexpr int P = PACK<D>;
  using Two = Pair<T, D>;
  const int64_t base = P * static_cast<int64_t>(at.offset[l]), down = P * grid.width();
  const T *corner = field + base;
  const T xl = at.low[D - 1][l], xh = at.high[D - 1][l];
  auto along_x = [&](const Two& v) { return xl * first_half(v) + xh * second_half(v); };
  const Point<T, D> gl = xl * g, gh = xh * g;
  Two share;
  if constexpr (D == 3) {
    share = __builtin_shufflevector(gl, gh, 0, 1, 2, 3, 4, 5, 6, 7);
  } else {
    share = __builtin_shufflevector(gl, gh, 0, 1, 2, 3);
  }
  auto add = [&](int64_t step, T weight) { write(read<Two>(to + base + step) + weight * share, to + base + step); };
  const T yl = at.low[D - 2][l], yh = at.high[D - 2][l];
  const Two p0 = read<Two>(corner), p1 = read<Two>(corner + down);
  const Two front = yl * p0 + yh * p1;
  if constexpr (D == 2) {
    add(0, yl);
    add(down, yh);
    return dot(at.moves[0][l] * g * along_x(p1 - p0), at.moves[1][l] * g * (second_half(front) - first_half(front)), g);
  } else {
    const int64_t deep = down * grid.size[1];
    __builtin_prefetch(corner + deep + AHEAD * down);
    __builtin_prefetch(to + base + deep + AHEAD * down, 1);
    const T zl = at.low[0][l], zh = at.high[0][l];
    const Two p2 = read<Two>(corner + deep), p3 = read<Two>(corner + deep + down);
    const Two back = yl * p2 + yh * p3;
    const Two middle = zl * front + zh * back;
    add(0, zl * yl);
    add(down, zl * yh);
    add(deep, zh * yl);
    add(deep + down, zh * yh);
    return dot(at.moves[0][l] * g * along_x(back - front),
               at.moves[1][l] * g * along_x(zl * (p1 - p0) + zh * (p3 - p2)),
               at.moves[2][l] * g * (second_half(middle) - first_half(middle)));
  }
}

template <typename T, int D>
void adjoint_rows(const Grid<D>& grid, const T* field, const T* grad, T* out, int64_t begin, int64_t end) {
  constexpr int P = PACK<D>;
  const int64_t width = grid.width();
  Block<T, D> block;
  T own[LANES * P];
  for (int64_t row = begin; row < end; ++row) {
    auto start = start_of<T, D>(grid, row);
    for (int64_t x = 0; x < width; x += LANES) {
      const int64_t count = std::min<int64_t>(LANES, width - x), place = P * (row * width + x);
      start[D - 1] = T(x);
      block.template set<true>(grid, field + place, start);
      // Neighbours add to overlapping pairs, and a load that overlaps a store in flight must wait for it: so every
      // other lane, then those between.
      for (int parity = 0; parity < 2; ++parity) {
        for (int l = parity; l < count; l += 2) {
          const auto g = read<Point<T, D>>(grad + place + P * l);
          write(g + adjoint<T, D>(grid, block, l, field, g, out), own + P * l);
        }
      }
      T* target = out + place;
      for (int64_t k = 0; k < P * count; ++k) target[k] += own[k];
    }
  }
}

template <typename T, int D>
void step_adjoint(const Grid<D>& grid, const T* fields, const T* grads, T* outs) {
  constexpr int P = PACK<D>;
  const int64_t planes = grid.size[0], per_plane = grid.count / planes, rows = per_plane / grid.width();
  std::vector<std::vector<Slab>> slabs;
  for (int64_t n = 0; n < grid.batch; ++n) {
    std::vector<Slab> reach(planes);
    const T* field = fields + n * P * grid.count;
    at::parallel_for(0, planes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        reach[i] = reach_of_plane<P>(i, field + i * P * per_plane, P * per_plane, planes);
        reach[i].low = std::min(reach[i].low, i);  // a position also adds to its own voxel
        reach[i].high = std::max(reach[i].high, i);
        std::fill(outs + P * (n * grid.count + i * per_plane), outs + P * (n * grid.count + (i + 1) * per_plane), T(0));
      }
    });
    slabs.push_back(merge(reach, planes));
  }
  run_slabs(grid.batch, false, slabs, [&](int64_t n, const Slab& slab) {
    const int64_t sample = n * P * grid.count;
    adjoint_rows<T, D>(grid, fields + sample, grads + sample, outs + sample, slab.begin * rows, slab.end * rows);
  });
}

// -- packing -----------------------------------------------------------------------------------------------------------

template <typename T, int D>
void pack(const Grid<D>& grid, const T* field, T factor, T* packed) {
  constexpr int P = PACK<D>;
  at::parallel_for(0, grid.batch * grid.rows(), std::max<int64_t>(1, GRAIN / grid.width()), [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t n = job / grid.rows(), k = (job % grid.rows()) * grid.width();
      const T* from = field + n * D * grid.count + k;
      T* to = packed + P * (n * grid.count + k);
      for (int64_t x = 0; x < grid.width(); ++x) {
        for (int a = 0; a < P; ++a) to[P * x + a] = a < D ? factor * from[a * grid.count + x] : T(0);
      }
    }
  });
}

template <typename T, int D>
void unpack_all(const Grid<D>& grid, const T* packed, T factor, T* field) {
  constexpr int P = PACK<D>;
  at::parallel_for(0, grid.batch * grid.rows(), std::max<int64_t>(1, GRAIN / grid.width()), [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t n = job / grid.rows(), k = (job % grid.rows()) * grid.width();
      for (int64_t x = 0; x < grid.width(); x += LANES) {
        const int64_t count = std::min<int64_t>(LANES, grid.width() - x);
        const auto u = unpack<T, D>(packed + P * (n * grid.count + k + x));
        for (int a = 0; a < D; ++a) store<T>(factor * u[a], field + (n * D + a) * grid.count + k + x, count);
      }
    }
  });
}

// -- the operators -----------------------------------------------------------------------------------------------------

template <typename F>
void dispatch(const at::Tensor& field, F run) {
  AT_DISPATCH_FLOATING_TYPES(field.scalar_type(), "integrate", [&] {
    if (field.dim() == 4) {
      run(scalar_t{}, std::integral_constant<int, 2>{});
    } else {
      run(scalar_t{}, std::integral_constant<int, 3>{});
    }
  });
}

void check(const at::Tensor& dvf, int64_t steps) {
  TORCH_CHECK(dvf.is_contiguous(), "expected contiguous tensors");
  TORCH_CHECK((dvf.dim() == 4 || dvf.dim() == 5) && dvf.size(1) == dvf.dim() - 2, "expected (B, d, *S)");
  TORCH_CHECK(steps > 0, "expected at least one step");
  for (int64_t a = 2; a < dvf.dim(); ++a) {
    TORCH_CHECK(dvf.size(a) > 1 && dvf.size(a) < (1 << 22), "expected axes of 2 to 2^22 voxels");
  }
  TORCH_CHECK(dvf.numel() / dvf.size(0) / dvf.size(1) < (int64_t(1) << 31), "expected less than 2^31 voxels");
}

// Packed fields with room behind the last. New memory of this size comes page by page, which would take longer than to
// fill it: large pages are asked for.
template <int D>
at::Tensor packed_like(const at::Tensor& dvf, const Grid<D>& grid, int64_t fields) {
  at::Tensor packed = at::empty({fields, grid.batch * grid.count * PACK<D> + TAIL<D>}, dvf.options());
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t PAGE = uintptr_t(1) << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(packed.data_ptr()), end = begin + packed.nbytes();
  const uintptr_t first = (begin + PAGE - 1) / PAGE * PAGE, last = end / PAGE * PAGE;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  packed.narrow(1, packed.size(1) - TAIL<D>, TAIL<D>).zero_();
  return packed;
}

template <typename T, int D>
void square_all(const Grid<D>& grid, const T* from, T* to) {
  const int64_t rows = grid.rows(), sample = grid.count * PACK<D>;
  at::parallel_for(0, grid.batch * rows, std::max<int64_t>(1, GRAIN / grid.width()), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin / rows; n * rows < end; ++n) {
      square_rows<T, D>(grid, from + n * sample, to + n * sample, std::max<int64_t>(begin - n * rows, 0),
                        std::min(end - n * rows, rows));
    }
  });
}

// Also returns the fields before each step, packed, where they are to be kept.
std::tuple<at::Tensor, at::Tensor> integrate(const at::Tensor& dvf, int64_t steps, bool keep) {
  check(dvf, steps);
  at::Tensor out = at::empty_like(dvf), states;
  dispatch(dvf, [&](auto zero, auto dims) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    const Grid<D> grid(dvf);
    states = packed_like<D>(dvf, grid, keep ? steps : 1);
    at::Tensor other = packed_like<D>(dvf, grid, 1);
    auto state = [&](int64_t k) {
      const bool kept = keep ? k < steps : k % 2 == 0;
      return kept ? states.mutable_data_ptr<T>() + (keep ? k : 0) * states.size(1) : other.mutable_data_ptr<T>();
    };
    pack<T, D>(grid, dvf.const_data_ptr<T>(), T(1) / static_cast<T>(int64_t(1) << steps), state(0));
    for (int64_t k = 0; k < steps; ++k) square_all<T, D>(grid, state(k), state(k + 1));
    unpack_all<T, D>(grid, state(steps), T(1), out.mutable_data_ptr<T>());
  });
  return {out, keep ? states : at::empty({0}, dvf.options())};
}

at::Tensor integrate_adjoint(const at::Tensor& grad, const at::Tensor& dvf, const at::Tensor& kept, int64_t steps) {
  check(dvf, steps);
  TORCH_CHECK(grad.is_contiguous() && grad.sizes() == dvf.sizes(), "expected a contiguous gradient of the field's size");
  const at::Tensor states = kept.numel() > 0 ? kept : std::get<1>(integrate(dvf, steps, true));
  at::Tensor out = at::empty_like(dvf);
  dispatch(dvf, [&](auto zero, auto dims) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    const Grid<D> grid(dvf);
    at::Tensor buffers = packed_like<D>(dvf, grid, 2);
    T *from = buffers.mutable_data_ptr<T>(), *to = from + buffers.size(1);
    pack<T, D>(grid, grad.const_data_ptr<T>(), T(1), from);
    for (int64_t k = steps - 1; k >= 0; --k) {
      step_adjoint<T, D>(grid, states.const_data_ptr<T>() + k * states.size(1), from, to);
      std::swap(from, to);
    }
    unpack_all<T, D>(grid, from, T(1) / static_cast<T>(int64_t(1) << steps), out.mutable_data_ptr<T>());
  });
  return out;
}

}  // namespace
}  // namespace registration

// operators.py defines them.
TORCH_LIBRARY_IMPL(registration, CPU, m) {
  m.impl("integrate", &registration::integrate);
  m.impl("integrate_adjoint", &registration::integrate_adjoint);
}
