// Vectors of LANES numbers, spelt out: what the compiler makes of loops is a lottery.

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace registration {

// Positions handled together, as one vector each of their coordinates, weights and values.
constexpr int LANES = 16;

// Rows further on of an image that will be read soon, in a plane not seen before.
constexpr int64_t AHEAD = 3;

template <typename T, int N>
struct VectorOf {
  typedef T Type __attribute__((vector_size(N * sizeof(T))));
};
template <typename T>
using Vector = typename VectorOf<T, LANES>::Type;
using Integers = Vector<int32_t>;

template <typename T>
inline Vector<T> fill(T value) {
  return Vector<T>{} + value;
}

// 0, 1, 2, ...
template <typename T>
inline Vector<T> ramp() {
  return Vector<T>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}

// The first `count` lanes; the others are 0.
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

// A vector of any type from memory of any alignment.
template <typename V, typename T>
inline V read(const T* from) {
  V values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

template <typename V, typename T>
inline void write(const V& values, T* to) {
  std::memcpy(to, &values, sizeof(values));
}

template <typename T>
inline Vector<T> clamp(Vector<T> p, T low, T high) {
  p = p > low ? p : fill(low);  // NaN gives low
  return p < high ? p : fill(high);
}

}  // namespace registration
