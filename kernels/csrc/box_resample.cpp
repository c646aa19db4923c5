// The exact box filter, one axis after the other, a row of the result at a time; then y * scale + shift per channel.
#include "cpu.h"

namespace deltaspace {

constexpr int64_t kGrain = 1 << 13;  // results per task

// Per output pixel: the first input pixel below it, and the weights of it and of those that follow.
template <typename W>
struct Bands {
  std::vector<int64_t> first;
  std::vector<std::vector<W>> weights;

  Bands(int64_t source, int64_t target) {
    for (int64_t t = 0; t < target; ++t) {
      const int64_t begin = t * source, end = begin + source;  // in units of 1 / target input pixels
      first.push_back(begin / target);
      weights.emplace_back();
      for (int64_t i = begin / target; i * target < end; ++i) {
        const int64_t overlap = std::min(end, (i + 1) * target) - std::max(begin, i * target);
        weights.back().push_back(W(overlap) / W(source));
      }
    }
  }
};

// The weights of a whole line: result i sums over k weights[k][i] * line[first[i] + k * channels].
template <typename W>
struct Across {
  int64_t size, taps = 0;
  std::vector<int32_t> first;
  std::vector<std::vector<W>> weights;

  Across(int64_t source, int64_t target, int64_t channels) : size(target * channels) {
    const Bands<W> bands(source, target);
    for (const auto& band : bands.weights) taps = std::max<int64_t>(taps, band.size());
    weights.assign(taps, std::vector<W>(size));
    for (int64_t i = 0; i < size; ++i) {
      const auto& band = bands.weights[i / channels];
      first.push_back(static_cast<int32_t>(bands.first[i / channels] * channels + i % channels));
      for (size_t k = 0; k < band.size(); ++k) weights[k][i] = band[k];
    }
  }
};

template <typename W>
ALONE void gather(const W* __restrict line, const int32_t* __restrict first, const W* __restrict share,
                  W* __restrict sum, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) sum[i] += share[i] * line[first[i]];
}

template <typename T, typename W>
ALONE void finish(const W* __restrict sum, const W* __restrict factor, const W* __restrict offset, T* __restrict out,
                  int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = narrow<T>(sum[i] * factor[i] + offset[i]);
}

Tensor box_resample(const Tensor& any, int64_t height, int64_t width, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& shift) {
  const Tensor x = dense(any);
  const Shape s = shape_of(x);
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(height > 0 && width > 0 && s.h > 0 && s.w > 0, "expected sizes of at least 1");
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "expected scale and shift together");
  for (const auto* side : {&scale, &shift}) {
    STD_TORCH_CHECK(!*side || ((*side)->is_contiguous() && (*side)->numel() == s.c && (*side)->scalar_type() == wide),
                    "expected scale and shift [C] in float32");
  }
  Tensor y = resized(x, s, height, width);
  if (y.numel() == 0) return y;
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    const T* in = data<T>(x);
    T* out = data_out<T>(y);
    const int64_t c = s.last ? s.c : 1, images = s.last ? s.n : s.n * s.c, size = width * c;
    const Bands<W> down(s.h, height);
    const Across<W> across(s.w, width, c);
    std::vector<W> factor, offset;  // per element of a line, for each image
    for (int64_t image = 0; image < (s.last ? 1 : s.c); ++image) {
      for (int64_t i = 0; i < size; ++i) {
        factor.push_back(scale ? data<W>(*scale)[image + i % c] : W(1));
        offset.push_back(shift ? data<W>(*shift)[image + i % c] : W(0));
      }
    }
    parallel(images * height, kGrain / size, [&](int64_t begin, int64_t end) {
      std::vector<W> line((s.w + across.taps) * c), scratch(s.w * c), sum(size);
      std::vector<const T*> rows;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t oy = task % height, image = task / height, at = s.last ? 0 : image % s.c * size;
        rows.clear();
        for (size_t k = 0; k < down.weights[oy].size(); ++k) {
          rows.push_back(in + (image * s.h + down.first[oy] + k) * s.w * c);
        }
        weighted<T, W, W>(line.data(), rows, down.weights[oy], s.w * c, scratch.data());
        std::fill(sum.begin(), sum.end(), W(0));
        for (int64_t k = 0; k < across.taps; ++k) {
          gather<W>(line.data() + k * c, across.first.data(), across.weights[k].data(), sum.data(), size);
        }
        finish<T, W>(sum.data(), factor.data() + at, offset.data() + at, out + task * size, size);
      }
    });
  });
  return y;
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CPU, m) { m.impl("box_resample", TORCH_BOX(&deltaspace::box_resample)); }
