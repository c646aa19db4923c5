// y = style * gain * (leaky_relu(base + demod * x) - leaky_relu(base)), for many changes x of each picture's base.
// Both lie with channels last; demod and style [N,C] are float, or double for double.
#include "cpu.h"

namespace deltaspace {

constexpr int64_t kGrain = 1 << 14;  // values per task

template <typename T, typename W>
ALONE void line(const T* __restrict x, const T* __restrict base, const W* __restrict demod, const W* __restrict scale,
                W slope, T* __restrict y, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const W z = widen(base[i]), moved = z + widen(x[i]) * demod[i];
    y[i] = narrow<T>(((moved > 0 ? moved : moved * slope) - (z > 0 ? z : z * slope)) * scale[i]);
  }
}

Tensor epilogue_difference(const Tensor& x, const Tensor& base, const std::optional<Tensor>& demod,
                           const std::optional<Tensor>& style, double slope, double gain) {
  STD_TORCH_CHECK(channels_last(x) && channels_last(base), "expected channels last");
  STD_TORCH_CHECK(x.scalar_type() == base.scalar_type() && base.size(0) > 0 && x.size(0) % base.size(0) == 0 &&
                      x.size(1) == base.size(1) && x.size(2) == base.size(2) && x.size(3) == base.size(3),
                  "expected changes of the base");
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t n = base.size(0), c = base.size(1), lines = base.size(2), width = base.size(3) * c;
  for (const auto* side : {&demod, &style}) {
    STD_TORCH_CHECK(
        !*side || ((*side)->is_contiguous() && (*side)->scalar_type() == wide && (*side)->numel() == n * c),
        "expected one value per map in float32");
  }
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  const int64_t per_picture = x.size(0) / n * lines;
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    std::vector<W> factor(n * width, W(1)), scale(n * width, W(gain));  // per value of a line, for each picture
    for (int64_t i = 0; i < n * width; ++i) {
      const int64_t map = i / width * c + i % c;
      if (demod) factor[i] = data<W>(*demod)[map];
      if (style) scale[i] *= data<W>(*style)[map];
    }
    const T *in = data<T>(x), *from = data<T>(base);
    T* out = data_out<T>(y);
    parallel(n * per_picture, kGrain / width, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t picture = i / per_picture, at = picture * width;
        line<T, W>(in + i * width, from + (picture * lines + i % lines) * width, factor.data() + at, scale.data() + at,
                   slope, out + i * width, width);
      }
    });
  });
  return y;
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CPU, m) { m.impl("epilogue_difference", TORCH_BOX(&deltaspace::epilogue_difference)); }
