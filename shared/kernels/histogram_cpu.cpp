// Joint histogram of two images with Gaussian windows, and its adjoint, without a weight for every voxel and bin.
//
// An intensity in [0, 1] lies at t = x (bins - 1); bin j gets exp(-k (t - j)^2) of it, divided by the sum over bins. Only
// the TAPS bins next to t get more than rounding: with d = t - round(t) their weights are exp(2 k d)^m exp(-k m^2) for
// m = -3 ... 3, up to a factor that the division takes out.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <tuple>
#include <vector>

#include "vectors.h"

namespace registration {
namespace {

constexpr int REACH = 3, TAPS = 2 * REACH + 1, ROW = 8;  // a row of weights has an eighth, which is 0
// Voxels summed in one piece, whoever sums them, and voxels between two transfers to double precision.
constexpr int64_t PIECE = 1 << 16, STRETCH = 1 << 12;
// Neighbouring voxels add to different copies: one that adds half to the same numbers would have to wait.
constexpr int COPIES = 4;

template <typename T>
using Row = typename VectorOf<T, ROW>::Type;

// The weights of LANES voxels of one image.
template <typename T>
struct Windows {
  Vector<T> weight[TAPS];
  Vector<T> inside;  // 1 where the intensity is in [0, 1]
  int32_t nearest[LANES];

  void set(const T* image, int64_t count, int64_t bins, T k) {
    const Vector<T> x = load(image, count);
    inside = (x >= T(0)) & (x <= T(1)) ? fill(T(1)) : Vector<T>{};
    const Vector<T> t = clamp<T>(x, T(0), T(1)) * T(bins - 1);
    const Integers bin = __builtin_convertvector(t + T(0.5), Integers);
    const Vector<T> d = t - __builtin_convertvector(bin, Vector<T>);
    write(bin, nearest);
    Vector<T> step, total{};
    for (int l = 0; l < LANES; ++l) step[l] = std::exp(2 * k * d[l]);
    const Vector<T> back = T(1) / step;
    const Vector<T> powers[TAPS] = {back * back * back, back * back, back, fill(T(1)), step, step * step, step * step * step};
    for (int m = 0; m < TAPS; ++m) {
      const Integers j = bin + (m - REACH);
      const auto valid = __builtin_convertvector((j >= 0) & (j < static_cast<int32_t>(bins)) ? Integers{} + 1 : Integers{}, Vector<T>);
      weight[m] = std::exp(-k * T((m - REACH) * (m - REACH))) * powers[m] * valid;
      total += weight[m];
    }
    for (int m = 0; m < TAPS; ++m) weight[m] /= total;
  }

  Vector<T> mean() const {
    Vector<T> sum{};
    for (int m = 0; m < TAPS; ++m) sum += T(m) * weight[m];
    return sum;
  }
};

template <typename T>
inline void transpose(const Vector<T> (&from)[TAPS], T (&to)[LANES][ROW]) {
  for (int l = 0; l < LANES; ++l) {
    for (int m = 0; m < TAPS; ++m) to[l][m] = from[m][l];
    to[l][TAPS] = T(0);
  }
}

// Bin (i, j) is at (i + REACH) * wide + j + REACH.
inline int64_t wide(int64_t bins) { return bins + 2 * REACH + 1; }

template <typename T>
void count_piece(const T* x, const T* y, int64_t count, int64_t bins, T k, double* sums) {
  const int64_t side = wide(bins), size = side * side;
  std::vector<T> copies(COPIES * size);
  Windows<T> a, b;
  T along_x[TAPS][LANES], along_y[LANES][ROW];
  for (int64_t begin = 0; begin < count; begin += STRETCH) {
    const int64_t end = std::min(begin + STRETCH, count);
    std::fill(copies.begin(), copies.end(), T(0));
    for (int64_t v = begin; v < end; v += LANES) {
      const int64_t lanes = std::min<int64_t>(LANES, end - v);
      a.set(x + v, lanes, bins, k);
      b.set(y + v, lanes, bins, k);
      for (int m = 0; m < TAPS; ++m) write(a.weight[m], along_x[m]);
      transpose<T>(b.weight, along_y);
      for (int l = 0; l < lanes; ++l) {
        const auto row = read<Row<T>>(along_y[l]);
        T* to = copies.data() + (l % COPIES) * size + a.nearest[l] * side + b.nearest[l];
        for (int m = 0; m < TAPS; ++m, to += side) write(read<Row<T>>(to) + along_x[m][l] * row, to);
      }
    }
    for (int c = 0; c < COPIES; ++c) {
      for (int64_t i = 0; i < size; ++i) sums[i] += copies[c * size + i];
    }
  }
}

// Gradients to both images from that to the bins, `slopes`, laid out as above.
template <typename T>
void adjoint_piece(const T* x, const T* y, int64_t count, int64_t bins, T k, const T* slopes, T* to_x, T* to_y) {
  const int64_t side = wide(bins);
  const T scale = 2 * k * T(bins - 1);
  Windows<T> a, b;
  T along_x[TAPS][LANES], moved_x[TAPS][LANES], along_y[LANES][ROW], mean_y[LANES], found_x[LANES], found_y[LANES];
  const Row<T> ramp = {0, 1, 2, 3, 4, 5, 6, 7};
  for (int64_t v = 0; v < count; v += LANES) {
    const int64_t lanes = std::min<int64_t>(LANES, count - v);
    a.set(x + v, lanes, bins, k);
    b.set(y + v, lanes, bins, k);
    const Vector<T> mean_x = a.mean();
    for (int m = 0; m < TAPS; ++m) {
      write(a.weight[m], along_x[m]);
      write(a.weight[m] * (T(m) - mean_x), moved_x[m]);
    }
    write(b.mean(), mean_y);
    transpose<T>(b.weight, along_y);
    for (int l = 0; l < lanes; ++l) {
      const T* from = slopes + a.nearest[l] * side + b.nearest[l];
      Row<T> still{}, moved{};
      for (int m = 0; m < TAPS; ++m, from += side) {
        const auto slope = read<Row<T>>(from);
        still += along_x[m][l] * slope;
        moved += moved_x[m][l] * slope;
      }
      const auto row = read<Row<T>>(along_y[l]);
      moved *= row;
      still *= row * (ramp - mean_y[l]);
      T sum_x = 0, sum_y = 0;
      for (int n = 0; n < TAPS; ++n) {
        sum_x += moved[n];
        sum_y += still[n];
      }
      found_x[l] = sum_x;
      found_y[l] = sum_y;
    }
    store<T>(scale * a.inside * read<Vector<T>>(found_x), to_x + v, lanes);
    store<T>(scale * b.inside * read<Vector<T>>(found_y), to_y + v, lanes);
  }
}

void check(const at::Tensor& x, const at::Tensor& y, int64_t bins) {
  TORCH_CHECK(x.is_contiguous() && y.is_contiguous() && x.dim() == 2, "expected contiguous (B, N)");
  TORCH_CHECK(x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type(), "expected two images of one size and dtype");
  TORCH_CHECK(bins >= 2 && bins <= 4096, "expected 2 to 4096 bins");
}

// (B, N) twice -> (B, bins, bins), sums over voxels in double precision.
at::Tensor joint_histogram(const at::Tensor& x, const at::Tensor& y, int64_t bins, double k) {
  check(x, y, bins);
  const int64_t count = x.size(1), pieces = (count + PIECE - 1) / PIECE, side = wide(bins);
  at::Tensor sums = at::zeros({x.size(0), pieces, side, side}, x.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "joint_histogram", [&] {
    at::parallel_for(0, x.size(0) * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) {
        const int64_t first = job % pieces * PIECE, at = job / pieces * count + first;
        count_piece<scalar_t>(x.const_data_ptr<scalar_t>() + at, y.const_data_ptr<scalar_t>() + at,
                              std::min(PIECE, count - first), bins, static_cast<scalar_t>(k),
                              sums.mutable_data_ptr<double>() + job * side * side);
      }
    });
  });
  return sums.sum(1).narrow(1, REACH, bins).narrow(2, REACH, bins).contiguous();
}

std::tuple<at::Tensor, at::Tensor> joint_histogram_adjoint(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& y,
                                                           double k) {
  const int64_t bins = grad.size(1), count = x.size(1), pieces = (count + PIECE - 1) / PIECE, side = wide(bins);
  check(x, y, bins);
  at::Tensor slopes = at::zeros({x.size(0), side, side}, x.options());
  slopes.narrow(1, REACH, bins).narrow(2, REACH, bins).copy_(grad);
  at::Tensor to_x = at::empty_like(x), to_y = at::empty_like(y);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "joint_histogram_adjoint", [&] {
    at::parallel_for(0, x.size(0) * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) {
        const int64_t first = job % pieces * PIECE, at = job / pieces * count + first;
        adjoint_piece<scalar_t>(x.const_data_ptr<scalar_t>() + at, y.const_data_ptr<scalar_t>() + at,
                                std::min(PIECE, count - first), bins, static_cast<scalar_t>(k),
                                slopes.const_data_ptr<scalar_t>() + job / pieces * side * side,
                                to_x.mutable_data_ptr<scalar_t>() + at, to_y.mutable_data_ptr<scalar_t>() + at);
      }
    });
  });
  return {to_x, to_y};
}

}  // namespace
}  // namespace registration

// operators.py defines them.
TORCH_LIBRARY_IMPL(registration, CPU, m) {
  m.impl("joint_histogram", &registration::joint_histogram);
  m.impl("joint_histogram_adjoint", &registration::joint_histogram_adjoint);
}
