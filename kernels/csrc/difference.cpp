// y = style * gain * (leaky_relu(base + demod * x) - leaky_relu(base)), for many changes x of each picture's base.
// x [B,C,H,W] and base [N,C,H,W] lie alike, B a multiple of N; demod and style [N,C] are float, or double for double.
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

template <typename T, typename W>
ALONE void plane(const T* __restrict x, const T* __restrict base, W demod, W scale, W slope, T* __restrict y,
                 int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const W z = widen(base[i]), moved = z + widen(x[i]) * demod;
    y[i] = narrow<T>(((moved > 0 ? moved : moved * slope) - (z > 0 ? z : z * slope)) * scale);
  }
}

Tensor epilogue_difference(const Tensor& x, const Tensor& base, const std::optional<Tensor>& demod,
                           const std::optional<Tensor>& style, double slope, double gain) {
  const Shape s = shape_of(x), b = shape_of(base);
  const int64_t times = s.n / std::max<int64_t>(b.n, 1);  // changes per picture
  STD_TORCH_CHECK(s.n == times * b.n && s.c == b.c && s.h == b.h && s.w == b.w &&
                      x.scalar_type() == base.scalar_type(), "expected changes of the base");
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (const auto* side : {&demod, &style}) {
    STD_TORCH_CHECK(!*side || ((*side)->is_contiguous() && (*side)->scalar_type() == wide &&
                               (*side)->numel() == b.n * b.c), "expected one value per map in float32");
  }
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  STD_TORCH_CHECK(s.last == b.last, "expected changes that lie as the base does");
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    const T *in = data<T>(x), *from = data<T>(base);
    T* out = data_out<T>(y);
    const int64_t maps = b.n * s.c, repeat = s.last ? s.w : 1;  // a line with channels last has every factor `w` times
    std::vector<W> factor(maps * repeat, W(1)), scale(maps * repeat, W(gain));
    for (int64_t i = 0; i < maps * repeat; ++i) {
      const int64_t map = i / (repeat * s.c) * s.c + i % s.c;
      if (demod) factor[i] = data<W>(*demod)[map];
      if (style) scale[i] *= data<W>(*style)[map];
    }
    if (s.last) {
      const int64_t width = s.w * s.c;
      parallel(s.n * s.h, kGrain / width, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t picture = i / (times * s.h), at = picture * width;
          line<T, W>(in + i * width, from + (picture * s.h + i % s.h) * width, factor.data() + at, scale.data() + at,
                     slope, out + i * width, width);
        }
      });
    } else {
      const int64_t size = s.h * s.w;
      parallel(s.n * s.c, kGrain / size, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t map = i / (times * s.c) * s.c + i % s.c;
          plane<T, W>(in + i * size, from + map * size, factor[map], scale[map], slope, out + i * size, size);
        }
      });
    }
  });
  return y;
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CPU, m) { m.impl("epilogue_difference", TORCH_BOX(&deltaspace::epilogue_difference)); }
