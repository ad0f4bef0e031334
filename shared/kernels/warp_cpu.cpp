// Warping on the CPU: identity + displacement + linear or nearest sampling in one pass, and its two adjoints.
//
// Positions are voxels in tensor order; image (N or 1, C, *S), displacement (N or 1, d, *T), contiguous, every image
// axis at least 2 long. Along an axis a position p meets two corners: b = clamp(floor(p), 0, size - 2) and b + 1, with
// the weights of a tent, max(0, 1 - |p - corner|). That is linear interpolation inside the image and fades to zero
// outside without a branch; for border padding p is clamped first. The two corners of the last axis are neighbours in
// memory and are loaded as one pair.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace {

// Positions handled together, as one vector each of their coordinates, weights and values; at the end of a row the
// surplus lanes stand still and are not written. Vectors are spelt out: what the compiler makes of loops is a lottery.
constexpr int LANES = 16;
// Slabs of the image's adjoint: a fixed number, so that the order of summation does not hang on the number of threads.
constexpr int64_t MAX_SLABS = 16;

template <typename T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(LANES * sizeof(T))));
};
template <typename T>
using Vector = typename VectorOf<T>::Type;
using Integers = Vector<int32_t>;

template <typename T>
inline Vector<T> fill(T value) {
  return Vector<T>{} + value;
}

template <typename T>
inline Vector<T> load(const T* from, int64_t count) {
  Vector<T> values{};
  if (count == LANES) {
    std::memcpy(&values, from, sizeof(values));  // a length known to the compiler: one load
  } else {
    std::memcpy(&values, from, count * sizeof(T));
  }
  return values;
}

template <typename T>
inline void store(const Vector<T>& values, T* to, int64_t count) {
  if (count == LANES) {
    std::memcpy(to, &values, sizeof(values));
  } else {
    std::memcpy(to, &values, count * sizeof(T));
  }
}

template <typename T>
inline Vector<T> clamp(Vector<T> p, T low, T high) {
  p = p > low ? p : fill(low);  // NaN gives low
  return p < high ? p : fill(high);
}

template <typename T>
inline Vector<T> tent(Vector<T> distance) {
  const Vector<T> weight = T(1) - (distance < T(0) ? -distance : distance);
  return weight > T(0) ? weight : Vector<T>{};  // NaN gives 0
}

// Derivative of the tent of a corner at `distance` = p - corner; at a kink that of the side above, as ATen has it.
template <typename T>
inline Vector<T> tent_slope(Vector<T> distance) {
  const Vector<T> below = distance >= T(-1) ? fill(T(1)) : Vector<T>{};
  const Vector<T> above = distance < T(1) ? fill(T(-1)) : Vector<T>{};
  return distance < T(0) ? below : above;
}

// Whole numbers next to p, halves to the even one; |p| must stay below 2^22.
template <typename T>
inline Vector<T> round_even(Vector<T> p) {
  const T shift = T(1.5) / std::numeric_limits<T>::epsilon();  // where neighbouring numbers lie 1 apart
  return (p + shift) - shift;
}

// Sizes of one call.
template <int D>
struct Shape {
  std::array<int64_t, D> in, out;
  int64_t batch, image_batch, field_batch, channels;
  int64_t in_count = 1, out_count = 1;

  Shape(const at::Tensor& image, const at::Tensor& field)
      : image_batch(image.size(0)), field_batch(field.size(0)), channels(image.size(1)) {
    batch = std::max(image_batch, field_batch);
    for (int a = 0; a < D; ++a) {
      in[a] = image.size(2 + a);
      out[a] = field.size(2 + a);
      in_count *= in[a];
      out_count *= out[a];
    }
  }
  // Rows along the last axis, and the rows in one plane of the first axis.
  int64_t rows() const { return out_count / out[D - 1]; }
  int64_t rows_per_plane() const { return rows() / out[0]; }
};

// Corners and weights of LANES positions along one axis.
template <typename T>
struct Axis {
  Vector<T> low, high;              // weights of the two corners
  Vector<T> low_slope, high_slope;  // their derivatives
  Integers base;                    // the lower corner

  void set_base(Vector<T> p, int64_t size, Vector<T>& corner) {
    base = __builtin_convertvector(clamp<T>(p, T(0), T(size - 2)), Integers);  // not below 0: cutting off is the floor
    corner = __builtin_convertvector(base, Vector<T>);
  }

  template <bool SLOPES>
  void set(Vector<T> raw, int64_t size, bool border) {
    const T last = T(size - 1);
    const Vector<T> p = border ? clamp<T>(raw, T(0), last) : raw;
    Vector<T> corner;
    set_base(p, size, corner);
    const Vector<T> above = p - corner;
    low = tent<T>(above);
    high = tent<T>(above - T(1));
    if (SLOPES) {
      low_slope = tent_slope<T>(above);
      high_slope = tent_slope<T>(above - T(1));
      if (border) {  // what is clamped does not move
        low_slope = (raw > T(0)) & (raw < last) ? low_slope : Vector<T>{};
        high_slope = (raw > T(0)) & (raw < last) ? high_slope : Vector<T>{};
      }
    }
  }

  // One corner has all the weight.
  void set_nearest(Vector<T> raw, int64_t size, bool border) {
    const T last = T(size - 1);
    const Vector<T> p = round_even<T>(border ? clamp<T>(raw, T(0), last) : clamp<T>(raw, T(-1), last + T(1)));
    Vector<T> corner;
    set_base(p, size, corner);
    low = p == corner ? fill(T(1)) : Vector<T>{};
    high = p == corner + T(1) ? fill(T(1)) : Vector<T>{};
  }
};

// LANES positions: the axes, and the offset of the lowest corner in a channel of the image.
template <typename T, int D>
struct Block {
  std::array<Axis<T>, D> axes;
  int32_t offset[LANES];

  template <bool SLOPES>
  void set(const Shape<D>& shape, const T* field, int64_t row, int64_t start, int64_t count, bool nearest, bool border) {
    Vector<T> ramp;
    for (int l = 0; l < LANES; ++l) ramp[l] = T(l);
    int64_t rest = row;
    const T* displacement = field + row * shape.out[D - 1] + start;
    Integers offsets{};
    std::array<Vector<T>, D> positions;
    for (int a = D - 1; a >= 0; --a) {
      const Vector<T> u = load(displacement + a * shape.out_count, count);
      if (a == D - 1) {
        positions[a] = (ramp + T(start)) + u;
      } else {
        positions[a] = T(rest % shape.out[a]) + u;
        rest /= shape.out[a];
      }
    }
    for (int a = 0; a < D; ++a) {
      if (nearest) {
        axes[a].set_nearest(positions[a], shape.in[a], border);
      } else {
        axes[a].template set<SLOPES>(positions[a], shape.in[a], border);
      }
      offsets = offsets * static_cast<int32_t>(shape.in[a]) + axes[a].base;
    }
    std::memcpy(offset, &offsets, sizeof(offset));
  }
};

// The rows of pairs that a position meets: 4 in 3D, 2 in 2D. Row r takes the high corner of axis a where its bit says.
template <int D>
constexpr int ROWS = 1 << (D - 1);

template <int D>
inline bool is_high(int row, int axis) {
  return (row >> (D - 2 - axis)) & 1;
}

template <int D>
std::array<int64_t, ROWS<D>> row_offsets(const Shape<D>& shape) {
  std::array<int64_t, ROWS<D>> offsets{};
  for (int r = 0; r < ROWS<D>; ++r) {
    int64_t stride = shape.in[D - 1];
    for (int a = D - 2; a >= 0; --a) {
      if (is_high<D>(r, a)) offsets[r] += stride;
      stride *= shape.in[a];
    }
  }
  return offsets;
}

// The two corners along the last axis of LANES positions.
template <typename T>
struct Corners {
  Vector<T> first, second;

  void load(const T* from, const int32_t* o) {
    for (int l = 0; l < LANES; ++l) {
      first[l] = from[o[l]];
      second[l] = from[o[l] + 1];
    }
  }
};

// A pair of floats is one load of 64 bits.
inline double load_pair(const float* from) {
  double pair;
  std::memcpy(&pair, from, sizeof(pair));
  return pair;
}

template <>
inline void Corners<float>::load(const float* from, const int32_t* o) {
  static_assert(LANES == 16, "two vectors of eight pairs");
  typedef double Pairs __attribute__((vector_size(64)));
  const Pairs left = {load_pair(from + o[0]), load_pair(from + o[1]), load_pair(from + o[2]), load_pair(from + o[3]),
                      load_pair(from + o[4]), load_pair(from + o[5]), load_pair(from + o[6]), load_pair(from + o[7])};
  const Pairs right = {load_pair(from + o[8]),  load_pair(from + o[9]),  load_pair(from + o[10]), load_pair(from + o[11]),
                       load_pair(from + o[12]), load_pair(from + o[13]), load_pair(from + o[14]), load_pair(from + o[15])};
  const auto a = reinterpret_cast<Vector<float>>(left), b = reinterpret_cast<Vector<float>>(right);
  first = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  second = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// Weight of the outer axes for every row of pairs.
template <typename T, int D>
inline void outer_weights(const Block<T, D>& block, Vector<T> (&weights)[ROWS<D>]) {
  for (int r = 0; r < ROWS<D>; ++r) {
    weights[r] = is_high<D>(r, 0) ? block.axes[0].high : block.axes[0].low;
    if (D == 3) weights[r] *= is_high<D>(r, 1) ? block.axes[1].high : block.axes[1].low;
  }
}

// -- forward -----------------------------------------------------------------------------------------------------------

template <typename T, int D>
void sample_rows(const Shape<D>& shape, const T* images, const T* fields, T* out, int64_t begin, int64_t end, bool nearest,
                 bool border, bool add) {
  const auto offsets = row_offsets<D>(shape);
  const int64_t width = shape.out[D - 1], rows = shape.rows();
  Block<T, D> block;
  Corners<T> corners;
  Vector<T> outer[ROWS<D>];
  for (int64_t job = begin; job < end; ++job) {
    const int64_t n = job / rows, row = job % rows;
    const T* image = images + (shape.image_batch == 1 ? 0 : n) * shape.channels * shape.in_count;
    const T* field = fields + (shape.field_batch == 1 ? 0 : n) * D * shape.out_count;
    T* target = out + n * shape.channels * shape.out_count + row * width;
    for (int64_t start = 0; start < width; start += LANES) {
      const int64_t count = std::min<int64_t>(LANES, width - start);
      block.template set<false>(shape, field, row, start, count, nearest, border);
      outer_weights<T, D>(block, outer);
      const auto& x = block.axes[D - 1];
      for (int64_t c = 0; c < shape.channels; ++c) {
        Vector<T> sum{};
        if (add) sum = load(field + c * shape.out_count + row * width + start, count);
        for (int r = 0; r < ROWS<D>; ++r) {
          corners.load(image + c * shape.in_count + offsets[r], block.offset);
          sum += outer[r] * (x.low * corners.first + x.high * corners.second);
        }
        store<T>(sum, target + c * shape.out_count + start, count);
      }
    }
  }
}

// -- adjoint to the displacement ---------------------------------------------------------------------------------------

// Add one row of pairs, times the gradient `g`, to the derivative along every axis.
template <typename T, int D>
inline void add_slopes(const Block<T, D>& block, int row, const Corners<T>& corners, Vector<T> outer, Vector<T> g,
                       std::array<Vector<T>, D>& sums) {
  const auto &x = block.axes[D - 1], &y = block.axes[D - 2], &z = block.axes[0];  // y is z in 2D
  const Vector<T> z_slope = is_high<D>(row, 0) ? z.high_slope : z.low_slope;
  const Vector<T> first = g * corners.first, second = g * corners.second;
  const Vector<T> value = x.low * first + x.high * second;
  sums[D - 1] += outer * (x.low_slope * first + x.high_slope * second);
  if (D == 2) {
    sums[0] += z_slope * value;
  } else {
    const Vector<T> z_weight = is_high<D>(row, 0) ? z.high : z.low;
    sums[D - 2] += z_weight * (is_high<D>(row, D - 2) ? y.high_slope : y.low_slope) * value;
    sums[0] += z_slope * (is_high<D>(row, D - 2) ? y.high : y.low) * value;
  }
}

template <typename T, int D>
void field_adjoint_rows(const Shape<D>& shape, const T* images, const T* fields, const T* grads, T* out, int64_t begin,
                        int64_t end, bool border) {
  const auto offsets = row_offsets<D>(shape);
  const int64_t width = shape.out[D - 1], rows = shape.rows();
  Block<T, D> block;
  Corners<T> corners;
  Vector<T> outer[ROWS<D>];
  for (int64_t job = begin; job < end; ++job) {
    const int64_t n = job / rows, row = job % rows;
    const T* image = images + (shape.image_batch == 1 ? 0 : n) * shape.channels * shape.in_count;
    const T* field = fields + (shape.field_batch == 1 ? 0 : n) * D * shape.out_count;
    const T* grad = grads + n * shape.channels * shape.out_count + row * width;
    T* target = out + n * D * shape.out_count + row * width;
    for (int64_t start = 0; start < width; start += LANES) {
      const int64_t count = std::min<int64_t>(LANES, width - start);
      block.template set<true>(shape, field, row, start, count, false, border);
      outer_weights<T, D>(block, outer);
      std::array<Vector<T>, D> sums{};
      for (int64_t c = 0; c < shape.channels; ++c) {
        const Vector<T> g = load(grad + c * shape.out_count + start, count);
        for (int r = 0; r < ROWS<D>; ++r) {
          corners.load(image + c * shape.in_count + offsets[r], block.offset);
          add_slopes<T, D>(block, r, corners, outer[r], g, sums);
        }
      }
      for (int a = 0; a < D; ++a) store<T>(sums[a], target + a * shape.out_count + start, count);
    }
  }
}

// -- adjoint to the image ----------------------------------------------------------------------------------------------

template <typename T>
struct PairOf {
  typedef T Type __attribute__((vector_size(2 * sizeof(T))));
};

// Pairs (first, second), lane by lane.
template <typename T>
inline void interleave(Vector<T> first, Vector<T> second, T* pairs) {
  const Vector<T> low = __builtin_shufflevector(first, second, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const Vector<T> high =
      __builtin_shufflevector(first, second, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  std::memcpy(pairs, &low, sizeof(low));
  std::memcpy(pairs + LANES, &high, sizeof(high));
}

template <typename T, int D>
void scatter_rows(const Shape<D>& shape, const T* field, const T* grad, T* out, int64_t begin, int64_t end, bool nearest,
                  bool border) {
  const auto offsets = row_offsets<D>(shape);
  const int64_t width = shape.out[D - 1];
  Block<T, D> block;
  using Pair = typename PairOf<T>::Type;
  Vector<T> outer[ROWS<D>];
  T shares[ROWS<D>][2 * LANES];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t start = 0; start < width; start += LANES) {
      const int64_t count = std::min<int64_t>(LANES, width - start);
      block.template set<false>(shape, field, row, start, count, nearest, border);
      outer_weights<T, D>(block, outer);
      const auto& x = block.axes[D - 1];
      for (int64_t c = 0; c < shape.channels; ++c) {
        const Vector<T> g = load(grad + c * shape.out_count + row * width + start, count);
        for (int r = 0; r < ROWS<D>; ++r) interleave<T>(g * outer[r] * x.low, g * outer[r] * x.high, shares[r]);
        T* channel = out + c * shape.in_count;
        // Neighbours write to overlapping pairs, and a load that overlaps a store in flight must wait for it: so every
        // other lane, then those between.
        for (int64_t parity = 0; parity < 2; ++parity) {
          for (int64_t l = parity; l < count; l += 2) {
            for (int r = 0; r < ROWS<D>; ++r) {
              T* place = channel + block.offset[l] + offsets[r];
              Pair sum, share;
              std::memcpy(&sum, place, sizeof(sum));
              std::memcpy(&share, shares[r] + 2 * l, sizeof(share));
              sum += share;
              std::memcpy(place, &sum, sizeof(sum));
            }
          }
        }
      }
    }
  }
}

struct Slab {
  int64_t begin, end;  // planes of the output's first axis
  int64_t low, high;   // planes of the image that they write to
};

// Cut the output's first axis so that slabs of one colour (even or odd) write to planes apart: no races, one order of
// summation. Wild fields leave fewer slabs, at worst one.
template <typename T, int D>
std::vector<Slab> cut(const Shape<D>& shape, const T* field) {
  const int64_t planes = shape.out[0], per_plane = shape.out_count / planes;
  std::vector<Slab> reach(planes);
  const T last = T(shape.in[0] - 1);
  at::parallel_for(0, planes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T low = last, high = T(0);
      const T* u = field + i * per_plane;
      for (int64_t k = 0; k < per_plane; ++k) {
        const T raw = T(i) + u[k];
        const T p = raw > T(0) ? (raw < last ? raw : last) : T(0);
        low = p < low ? p : low;
        high = p > high ? p : high;
      }
      reach[i] = {i, i + 1, std::max<int64_t>(0, static_cast<int64_t>(low) - 1), static_cast<int64_t>(high) + 1};
    }
  });
  for (int64_t count = std::min(MAX_SLABS, planes / 2); count > 2; count /= 2) {
    std::vector<Slab> slabs;
    for (int64_t s = 0; s < count; ++s) {
      Slab slab{planes * s / count, planes * (s + 1) / count, std::numeric_limits<int64_t>::max(), -1};
      for (int64_t i = slab.begin; i < slab.end; ++i) {
        slab.low = std::min(slab.low, reach[i].low);
        slab.high = std::max(slab.high, reach[i].high);
      }
      slabs.push_back(slab);
    }
    bool apart = true;
    for (int64_t a = 0; a < count; ++a) {
      for (int64_t b = a + 2; b < count; b += 2) apart &= slabs[a].high < slabs[b].low || slabs[b].high < slabs[a].low;
    }
    if (apart) return slabs;
  }
  return {{0, planes, 0, shape.in[0] - 1}};
}

template <typename T, int D>
void image_adjoint(const Shape<D>& shape, const T* fields, const T* grads, T* out, bool nearest, bool border) {
  const int64_t per_plane = shape.rows_per_plane();
  std::vector<std::vector<Slab>> slabs;
  for (int64_t n = 0; n < shape.field_batch; ++n) slabs.push_back(cut<T, D>(shape, fields + n * D * shape.out_count));
  auto scatter = [&](int64_t n, const Slab& slab) {
    const T* field = fields + (shape.field_batch == 1 ? 0 : n) * D * shape.out_count;
    T* target = out + (shape.image_batch == 1 ? 0 : n) * shape.channels * shape.in_count;
    scatter_rows<T, D>(shape, field, grads + n * shape.channels * shape.out_count, target, slab.begin * per_plane,
                       slab.end * per_plane, nearest, border);
  };
  auto run = [&](const std::vector<std::pair<int64_t, Slab>>& jobs) {
    at::parallel_for(0, jobs.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) scatter(jobs[j].first, jobs[j].second);
    });
  };
  auto of = [&](int64_t n) -> const std::vector<Slab>& { return slabs[shape.field_batch == 1 ? 0 : n]; };
  // One image shared by a batch of fields is summed into by all of them: one after another.
  const bool shared = shape.image_batch == 1;
  for (int64_t first = 0; first < shape.batch; first += shared ? 1 : shape.batch) {
    const int64_t stop = shared ? first + 1 : shape.batch;
    for (int64_t colour = 0; colour < 2; ++colour) {
      std::vector<std::pair<int64_t, Slab>> jobs;
      for (int64_t n = first; n < stop; ++n) {
        for (size_t s = colour; s < of(n).size(); s += 2) jobs.emplace_back(n, of(n)[s]);
      }
      run(jobs);
    }
  }
}

// -- the operators -----------------------------------------------------------------------------------------------------

template <typename F>
void dispatch(const at::Tensor& image, F run) {
  const bool flat = image.dim() == 4;
  AT_DISPATCH_FLOATING_TYPES(image.scalar_type(), "warp", [&] {
    if (flat) {
      run(scalar_t{}, std::integral_constant<int, 2>{});
    } else {
      run(scalar_t{}, std::integral_constant<int, 3>{});
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
  dispatch(image, [&](auto zero, auto dims) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    const Shape<D> shape(image, field);
    const int64_t grain = std::max<int64_t>(1, GRAIN / shape.out[D - 1] / shape.channels);
    at::parallel_for(0, shape.batch * shape.rows(), grain, [&](int64_t begin, int64_t end) {
      sample_rows<T, D>(shape, image.const_data_ptr<T>(), field.const_data_ptr<T>(), out.mutable_data_ptr<T>(), begin,
                        end, nearest, border, add);
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
  dispatch(image, [&](auto zero, auto dims) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    const Shape<D> shape(image, field);
    const int64_t grain = std::max<int64_t>(1, GRAIN / shape.out[D - 1] / shape.channels);
    at::parallel_for(0, shape.batch * shape.rows(), grain, [&](int64_t begin, int64_t end) {
      field_adjoint_rows<T, D>(shape, image.const_data_ptr<T>(), field.const_data_ptr<T>(), grad.const_data_ptr<T>(),
                               out.mutable_data_ptr<T>(), begin, end, border);
    });
  });
  return field.size(0) == out.size(0) ? out : out.sum(0, /*keepdim=*/true);
}

at::Tensor warp_image_adjoint(const at::Tensor& grad, const at::Tensor& image, const at::Tensor& field, bool nearest,
                              bool border) {
  check(image, field);
  TORCH_CHECK(grad.is_contiguous(), "expected a contiguous gradient");
  at::Tensor out = at::zeros_like(image);
  dispatch(image, [&](auto zero, auto dims) {
    using T = decltype(zero);
    constexpr int D = decltype(dims)::value;
    const Shape<D> shape(image, field);
    image_adjoint<T, D>(shape, field.const_data_ptr<T>(), grad.const_data_ptr<T>(), out.mutable_data_ptr<T>(), nearest,
                        border);
  });
  return out;
}

}  // namespace

// operators.py defines them.
TORCH_LIBRARY_IMPL(registration, CPU, m) {
  m.impl("warp", &warp);
  m.impl("warp_field_adjoint", &warp_field_adjoint);
  m.impl("warp_image_adjoint", &warp_image_adjoint);
}
