// Slabs of planes that add to an image without races and in one order of summation, for any number of threads.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "vectors.h"

namespace registration {

// A fixed number, so that the order of summation does not hang on the number of threads.
constexpr int64_t MAX_SLABS = 16;

struct Slab {
  int64_t begin, end;  // planes of the output's first axis
  int64_t low, high;   // planes of the image that they write to
};

// Cut the output's first axis so that slabs of one colour (even or odd) write to planes apart. Wild fields leave fewer
// slabs, at worst one. `reach` is a slab for every plane.
inline std::vector<Slab> merge(const std::vector<Slab>& reach, int64_t image_planes) {
  const int64_t planes = reach.size();
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
  return {{0, planes, 0, image_planes - 1}};
}

// The planes of the image that plane i of the output writes to, from its displacements along the first axis, which are
// every `STEP`th of `count` numbers.
template <int STEP, typename T>
Slab reach_of_plane(int64_t i, const T* u, int64_t count, int64_t image_planes) {
  const T last = T(image_planes - 1);
  Vector<T> low = fill(last), high{};
  for (int64_t k = 0; k < count; k += LANES) {
    const Vector<T> some = load(u + std::min(k, std::max<int64_t>(0, count - LANES)), std::min<int64_t>(count, LANES));
    const Vector<T> p = clamp<T>(T(i) + some, T(0), last);
    low = p < low ? p : low;
    high = p > high ? p : high;
  }
  Slab reach{i, i + 1, image_planes, 0};
  for (int l = 0; l < LANES; l += STEP) {
    reach.low = std::min(reach.low, std::max<int64_t>(0, static_cast<int64_t>(low[l]) - 1));
    reach.high = std::max(reach.high, static_cast<int64_t>(high[l]) + 1);
  }
  return reach;
}

// Run `work(n, slab)` for every slab of every sample, the even ones first. Where all samples write to one image they
// follow each other.
template <typename F>
void run_slabs(int64_t batch, bool one_image, const std::vector<std::vector<Slab>>& slabs, F work) {
  for (int64_t first = 0; first < batch; first += one_image ? 1 : batch) {
    const int64_t stop = one_image ? first + 1 : batch;
    for (int64_t colour = 0; colour < 2; ++colour) {
      std::vector<std::pair<int64_t, Slab>> jobs;
      for (int64_t n = first; n < stop; ++n) {
        const auto& cuts = slabs[slabs.size() == 1 ? 0 : n];
        for (size_t s = colour; s < cuts.size(); s += 2) jobs.emplace_back(n, cuts[s]);
      }
      at::parallel_for(0, jobs.size(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) work(jobs[j].first, jobs[j].second);
      });
    }
  }
}

}  // namespace registration
