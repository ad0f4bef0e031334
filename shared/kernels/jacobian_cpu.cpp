// Folds and log Jacobian determinants of a displacement field in one pass, without a map of them.
//
// The determinant of I + du/dx, differences as in fields.py: central inside, one-sided at the ends. Logs are of
// determinants clamped to [1e-9, 1e9]. Every row gives its count, folds, mean log and sum of squared deviations; rows are
// joined in their order (Chan, Golub and LeVeque, 1979), so that threads change nothing.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace registration {
namespace {

constexpr int SCORES = 4;  // count, folds, mean log, sum of squared deviations of the logs

template <typename T>
using Bits = std::conditional_t<std::is_same_v<T, float>, int32_t, int64_t>;

// Natural logarithm of positive normal numbers: x = m 2^e with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m-1)/(m+1)).
template <typename T>
inline Vector<T> logarithm(const Vector<T>& x) {
  using Integer = Bits<T>;
  using Whole = typename VectorOf<Integer, LANES>::Type;
  constexpr bool single = std::is_same_v<T, float>;
  constexpr int mantissa = single ? 23 : 52, terms = single ? 6 : 12;
  constexpr Integer root_half = static_cast<Integer>(single ? 0x3f3504f3LL : 0x3fe6a09e667f3bcdLL);
  const Whole bits = read<Whole>(&x);
  const Whole exponent = (bits - root_half) >> mantissa;
  const Whole scaled = bits - (exponent << mantissa);
  const Vector<T> m = read<Vector<T>>(&scaled);
  const Vector<T> s = (m - T(1)) / (m + T(1)), z = s * s;
  Vector<T> sum = fill(T(1) / T(2 * terms - 1));
  for (int n = terms - 2; n >= 0; --n) sum = sum * z + T(1) / T(2 * n + 1);
  return T(2) * s * sum + __builtin_convertvector(exponent, Vector<T>) * T(0.693147180559945309417);
}

// Neighbours of voxel i along an axis of n, and one over their distance; 0 for an axis of one voxel.
struct Step {
  int64_t low, high;
  double scale;

  Step(int64_t i, int64_t n) : low(std::max<int64_t>(i - 1, 0)), high(std::min(i + 1, n - 1)) {
    scale = high > low ? 1.0 / static_cast<double>(high - low) : 0.0;
  }
};

// A row with one voxel more at either end, on the line through the last two: differences there become one-sided.
template <typename T>
void extend(const T* row, int64_t n, T* to) {
  std::copy(row, row + n, to + 1);
  to[0] = n > 1 ? 2 * row[0] - row[1] : row[0];
  to[n + 1] = n > 1 ? 2 * row[n - 1] - row[n - 2] : row[n - 1];
}

template <typename T>
inline Vector<T> determinant(const Vector<T> (&e)[2][2]) {
  return e[0][0] * e[1][1] - e[0][1] * e[1][0];
}

template <typename T>
inline Vector<T> determinant(const Vector<T> (&e)[3][3]) {
  return e[0][0] * (e[1][1] * e[2][2] - e[1][2] * e[2][1]) + e[0][1] * (e[1][2] * e[2][0] - e[1][0] * e[2][2]) +
         e[0][2] * (e[1][0] * e[2][1] - e[1][1] * e[2][0]);
}

// A field (D, *S), its mask (*S) or null, and room for one row.
template <typename T, int D>
struct Rows {
  const T* field;
  const uint8_t* mask;
  int64_t size[D];
  int64_t voxels = 1;
  std::vector<T> extended, logs, weights;

  Rows(const at::Tensor& from, const at::Tensor& where)
      : field(from.const_data_ptr<T>()), mask(where.numel() ? where.const_data_ptr<uint8_t>() : nullptr) {
    for (int a = 0; a < D; ++a) voxels *= size[a] = from.size(a + 1);
    extended.resize(D * (width() + 2));
    logs.resize(width() + LANES);
    weights.resize(width() + LANES);
  }

  int64_t width() const { return size[D - 1]; }

  void score(int64_t row, double* scores) {
    const int64_t at = row * width();
    const Step along[2] = {Step(D == 3 ? row / size[D - 2] : 0, size[0]), Step(row % size[D - 2], size[D - 2])};
    // Rows before and behind along every axis but the last.
    const T *low[D][D - 1], *high[D][D - 1];
    T scale[D - 1];
    for (int b = 0; b < D - 1; ++b) {
      const Step& step = along[b + 3 - D];
      const int64_t stride = b == D - 2 ? width() : width() * size[D - 2];
      const int64_t here = at - (b == D - 2 ? row % size[D - 2] : row / size[D - 2]) * stride;
      scale[b] = static_cast<T>(step.scale);
      for (int a = 0; a < D; ++a) {
        low[a][b] = field + a * voxels + here + step.low * stride;
        high[a][b] = field + a * voxels + here + step.high * stride;
      }
    }
    for (int a = 0; a < D; ++a) extend(field + a * voxels + at, width(), extended.data() + a * (width() + 2));
    Vector<T> count{}, folds{}, total{};
    for (int64_t x = 0; x < width(); x += LANES) {
      const int64_t lanes = std::min<int64_t>(LANES, width() - x);
      Vector<T> entry[D][D];
      for (int a = 0; a < D; ++a) {
        for (int b = 0; b < D - 1; ++b) entry[a][b] = (load(high[a][b] + x, lanes) - load(low[a][b] + x, lanes)) * scale[b];
        const T* middle = extended.data() + a * (width() + 2) + x;
        entry[a][D - 1] = (load(middle + 2, lanes) - load(middle, lanes)) * T(0.5);
        entry[a][a] += T(1);
      }
      const Vector<T> found = determinant<T>(entry);
      Vector<T> weight = ramp<T>() < T(lanes) ? fill(T(1)) : Vector<T>{};
      if (mask != nullptr) {
        for (int l = 0; l < lanes; ++l) weight[l] = mask[at + x + l] ? T(1) : T(0);
      }
      Vector<T> log = logarithm<T>(clamp<T>(found, T(1e-9), T(1e9)));
      log = found == found ? log : found;  // not a number stays so
      log = weight > T(0) ? log : Vector<T>{};
      count += weight;
      folds += found <= T(0) ? weight : Vector<T>{};
      total += log;
      write(log, logs.data() + x);
      write(weight, weights.data() + x);
    }
    join(count, folds, total, scores);
  }

 private:
  void join(const Vector<T>& count, const Vector<T>& folds, const Vector<T>& total, double* scores) {
    double n = 0, folded = 0, sum = 0;
    for (int l = 0; l < LANES; ++l) {
      n += count[l];
      folded += folds[l];
      sum += total[l];
    }
    const T guess = n > 0 ? static_cast<T>(sum / n) : T(0);
    Vector<T> rest{}, squares{};
    for (int64_t x = 0; x < width(); x += LANES) {
      const auto apart = (read<Vector<T>>(logs.data() + x) - guess) * read<Vector<T>>(weights.data() + x);
      rest += apart;
      squares += apart * apart;
    }
    double first = 0, second = 0;
    for (int l = 0; l < LANES; ++l) {
      first += rest[l];
      second += squares[l];
    }
    scores[0] = n;
    scores[1] = folded;
    scores[2] = n > 0 ? guess + first / n : 0;
    scores[3] = n > 0 ? std::max(second - first * first / n, second * 0) : 0;  // NaN stays
  }
};

template <typename T, int D>
void score_rows(const at::Tensor& field, const at::Tensor& mask, double* scores, int64_t rows) {
  at::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    Rows<T, D> worker(field, mask);
    for (int64_t row = begin; row < end; ++row) worker.score(row, scores + row * SCORES);
  });
}

// (d, *S), and uint8 (*S) or nothing -> count, folds, mean and sum of squared deviations of the logs, in double precision.
at::Tensor jacobian_scores(const at::Tensor& field, const at::Tensor& mask) {
  const int64_t d = field.size(0);
  TORCH_CHECK((d == 2 || d == 3) && field.dim() == d + 1, "expected (d, *S) with d spatial axes, 2 or 3");
  TORCH_CHECK(field.is_contiguous() && field.numel() > 0, "expected a contiguous field of at least one voxel");
  TORCH_CHECK(mask.numel() == 0 || (mask.is_contiguous() && mask.scalar_type() == at::kByte && mask.sizes() == field.sizes().slice(1)),
              "expected a contiguous uint8 mask of the field's size");
  const int64_t rows = field[0].numel() / field.size(d);
  std::vector<double> found(rows * SCORES);
  AT_DISPATCH_FLOATING_TYPES(field.scalar_type(), "jacobian_scores", [&] {
    d == 2 ? score_rows<scalar_t, 2>(field, mask, found.data(), rows) : score_rows<scalar_t, 3>(field, mask, found.data(), rows);
  });
  at::Tensor total = at::zeros({SCORES}, field.options().dtype(at::kDouble));
  double* sums = total.mutable_data_ptr<double>();
  for (const double* row = found.data(); row < found.data() + rows * SCORES; row += SCORES) {
    if (row[0] == 0) continue;
    const double n = sums[0] + row[0], apart = row[2] - sums[2];
    sums[3] += row[3] + apart * apart * sums[0] * row[0] / n;
    sums[2] += apart * row[0] / n;
    sums[1] += row[1];
    sums[0] = n;
  }
  return total;
}

}  // namespace
}  // namespace registration

// operators.py defines it.
TORCH_LIBRARY_IMPL(registration, CPU, m) { m.impl("jacobian_scores", &registration::jacobian_scores); }
