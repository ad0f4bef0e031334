// Where positions lie in an image, and what linear and nearest sampling make of its corners.
//
// Positions are voxels in tensor order; image (N or 1, C, *S), displacement (N or 1, d, *T), contiguous, every image
// axis at least 2 long. Along an axis a position p meets two corners: b = clamp(floor(p), 0, size - 2) and b + 1, with
// the weights of a tent, max(0, 1 - |p - corner|). That is linear interpolation inside the image and fades to zero
// outside without a branch; for border padding p is clamped first. The two corners of the last axis are neighbours in
// memory and are loaded as one pair.

#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <limits>
#include <type_traits>

#include "vectors.h"

namespace registration {

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

  template <bool SLOPES, bool BORDER>
  void set(Vector<T> raw, int64_t size) {
    const T last = T(size - 1);
    Vector<T> corner;
    if (BORDER) {
      const Vector<T> p = clamp<T>(raw, T(0), last);
      set_base(p, size, corner);
      high = p - corner;
      low = T(1) - high;
      if (SLOPES) {  // what is clamped does not move
        high_slope = (raw > T(0)) & (raw < last) ? fill(T(1)) : Vector<T>{};
        low_slope = -high_slope;
      }
    } else {
      set_base(raw, size, corner);
      const Vector<T> above = raw - corner;
      low = tent<T>(above);
      high = tent<T>(above - T(1));
      if (SLOPES) {
        low_slope = tent_slope<T>(above);
        high_slope = tent_slope<T>(above - T(1));
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

enum Sampling { LINEAR_ZEROS, LINEAR_BORDER, NEAREST_ZEROS, NEAREST_BORDER };

// Index of a row's first voxel along each axis.
template <typename T, int D>
inline std::array<T, D> start_of(const Shape<D>& shape, int64_t row) {
  std::array<T, D> start{};
  for (int a = D - 2; a >= 0; --a) {
    start[a] = T(row % shape.out[a]);
    row /= shape.out[a];
  }
  return start;
}

// LANES positions: the axes, and the offset of the lowest corner in a channel of the image.
template <typename T, int D>
struct Block {
  std::array<Axis<T>, D> axes;
  int32_t offset[LANES];

  // From the displacements of the first position on, at index `start`.
  template <Sampling MODE, bool SLOPES>
  void set(const Shape<D>& shape, const T* displacement, const std::array<T, D>& start, int64_t count) {
    Integers offsets{};
    for (int a = 0; a < D; ++a) {
      Vector<T> position = start[a] + load(displacement + a * shape.out_count, count);
      if (a == D - 1) position += ramp<T>();
      if (MODE >= NEAREST_ZEROS) {
        axes[a].set_nearest(position, shape.in[a], MODE == NEAREST_BORDER);
      } else {
        axes[a].template set<SLOPES, MODE == LINEAR_BORDER>(position, shape.in[a]);
      }
      offsets = offsets * static_cast<int32_t>(shape.in[a]) + axes[a].base;
    }
    write(offsets, offset);
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

// The two corners along the last axis of LANES positions, for every row of pairs.
template <typename T, int D>
struct Corners {
  Vector<T> first[ROWS<D>], second[ROWS<D>];

  void load(const T* from, const std::array<int64_t, ROWS<D>>& rows, const int32_t* o) {
    // New lines of memory come with the last row: those of the rows after it are asked for now.
    const T* soon = from + rows[ROWS<D> - 1] + AHEAD * (D == 3 ? rows[1] : 0);
    __builtin_prefetch(soon + o[0]);
    __builtin_prefetch(soon + o[LANES - 1]);
    if constexpr (std::is_same_v<T, float>) {
      // A pair of floats is one load of 64 bits; four positions at a time, as many as there are registers for.
      Four quarters[4][ROWS<D>];
      for (int q = 0; q < 4; ++q) load_pairs(from, rows, o + 4 * q, quarters[q]);
      for (int r = 0; r < ROWS<D>; ++r) {
        const auto left = __builtin_shufflevector(quarters[0][r], quarters[1][r], 0, 1, 2, 3, 4, 5, 6, 7);
        const auto right = __builtin_shufflevector(quarters[2][r], quarters[3][r], 0, 1, 2, 3, 4, 5, 6, 7);
        const auto a = reinterpret_cast<Vector<T>>(left), b = reinterpret_cast<Vector<T>>(right);
        first[r] = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        second[r] = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
      }
    } else {
      for (int r = 0; r < ROWS<D>; ++r) {
        for (int l = 0; l < LANES; ++l) {
          first[r][l] = from[rows[r] + o[l]];
          second[r][l] = from[rows[r] + o[l] + 1];
        }
      }
    }
  }

 private:
  typedef double Four __attribute__((vector_size(32)));

  static void load_pairs(const float* from, const std::array<int64_t, ROWS<D>>& rows, const int32_t* o, Four* pairs) {
    const int64_t o0 = o[0], o1 = o[1], o2 = o[2], o3 = o[3];
    for (int r = 0; r < ROWS<D>; ++r) {
      const float* row = from + rows[r];
      pairs[r] = Four{read<double>(row + o0), read<double>(row + o1), read<double>(row + o2), read<double>(row + o3)};
    }
  }
};

// Weight of the outer axes for every row of pairs.
template <typename T, int D>
inline void outer_weights(const Block<T, D>& block, Vector<T> (&weights)[ROWS<D>]) {
  for (int r = 0; r < ROWS<D>; ++r) {
    weights[r] = is_high<D>(r, 0) ? block.axes[0].high : block.axes[0].low;
    if (D == 3) weights[r] *= is_high<D>(r, 1) ? block.axes[1].high : block.axes[1].low;
  }
}

// Add one row of pairs, times the gradient `g`, to the derivative along every axis.
template <typename T, int D>
inline void add_slopes(const Block<T, D>& block, int row, Vector<T> first, Vector<T> second, Vector<T> outer,
                       std::array<Vector<T>, D>& sums) {
  const auto &x = block.axes[D - 1], &y = block.axes[D - 2], &z = block.axes[0];  // y is z in 2D
  const Vector<T> z_slope = is_high<D>(row, 0) ? z.high_slope : z.low_slope;
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

}  // namespace registration
