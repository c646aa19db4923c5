// y = style * gain * (leaky_relu(base + demod * x) - leaky_relu(base)), for many changes x of each image's base.
// x [B,C,H,W] and base [N,C,H,W] lie alike, B a multiple of N; demod and style [N,C] are float, or double for double.
#include "cpu.h"

namespace deltaspace {

constexpr int64_t kGrain = 1 << 14;  // values per task

template <typename W>
inline W changed(W x, W z, W demod, W scale, W slope) {
  const W moved = z + x * demod;
  return ((moved > 0 ? moved : moved * slope) - (z > 0 ? z : z * slope)) * scale;
}

// Pixels that lie one after another; demod and scale repeat after `period` values. y may be x.
template <typename T, typename W>
ALONE void line(const T* x, const T* __restrict base, const W* __restrict demod, const W* __restrict scale, W slope,
                T* y, int64_t size, int64_t period) {
  for (int64_t at = 0; at < size; at += period, x += period, base += period, y += period) {
#pragma omp simd
    for (int64_t i = 0; i < period; ++i) {
      y[i] = narrow<T>(changed<W>(widen(x[i]), widen(base[i]), demod[i], scale[i], slope));
    }
  }
}

#ifdef __AVX512BF16__
template <>
void line<BFloat16, float>(const BFloat16* x, const BFloat16* __restrict base, const float* __restrict demod,
                           const float* __restrict scale, float slope, BFloat16* y, int64_t size, int64_t period) {
  const __m512 zero = _mm512_setzero_ps(), low = _mm512_set1_ps(slope);
  const auto bent = [&](__m512 z) { return _mm512_mask_mul_ps(z, _mm512_cmp_ps_mask(z, zero, _CMP_NGT_UQ), z, low); };
  for (int64_t at = 0; at < size; at += period, x += period, base += period, y += period) {
    int64_t i = 0;
    for (; i + kLanes <= period; i += kLanes) {
      const __m512 z = widen16(base + i), moved = _mm512_fmadd_ps(widen16(x + i), _mm512_loadu_ps(demod + i), z);
      narrow16(_mm512_mul_ps(bent(moved) - bent(z), _mm512_loadu_ps(scale + i)), y + i);
    }
    for (; i < period; ++i) y[i] = narrow<BFloat16>(changed<float>(widen(x[i]), widen(base[i]), demod[i], scale[i], slope));
  }
}
#endif

template <typename T, typename W>
ALONE void plane(const T* x, const T* __restrict base, W demod, W scale, W slope, T* y, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) y[i] = narrow<T>(changed<W>(widen(x[i]), widen(base[i]), demod, scale, slope));
}

void write(const Tensor& x, const Tensor& base, const std::optional<Tensor>& demod, const std::optional<Tensor>& style,
           double slope, double gain, Tensor& y) {
  const Shape s = shape_of(x), b = shape_of(base);
  const int64_t times = s.n / std::max<int64_t>(b.n, 1);  // changes per image
  STD_TORCH_CHECK(s.n == times * b.n && s.c == b.c && s.h == b.h && s.w == b.w &&
                      x.scalar_type() == base.scalar_type(), "expected changes of the base");
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (const auto* side : {&demod, &style}) {
    STD_TORCH_CHECK(!*side || ((*side)->is_contiguous() && (*side)->scalar_type() == wide &&
                               (*side)->numel() == b.n * b.c), "expected one value per map in float32");
  }
  if (x.numel() == 0) return;
  STD_TORCH_CHECK(s.last == b.last, "expected changes that lie as the base does");
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    const T *in = data<T>(x), *from = data<T>(base);
    T* out = data_out<T>(y);
    // with channels last, few or odd numbers of factors are repeated for all pixels of a row
    const int64_t maps = b.n * s.c, repeat = s.last && s.c % 16 ? s.w : 1;
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
          const int64_t picture = i / (times * s.h), at = picture * repeat * s.c;
          line<T, W>(in + i * width, from + (picture * s.h + i % s.h) * width, factor.data() + at, scale.data() + at,
                     slope, out + i * width, width, repeat * s.c);
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
}

Tensor epilogue_difference(const Tensor& x, const Tensor& base, const std::optional<Tensor>& demod,
                           const std::optional<Tensor>& style, double slope, double gain) {
  Tensor y = torch::stable::empty_like(x);
  write(x, base, demod, style, slope, gain, y);
  return y;
}

// The same in the memory of x, which halves what is moved.
void epilogue_difference_(Tensor x, const Tensor& base, const std::optional<Tensor>& demod,
                          const std::optional<Tensor>& style, double slope, double gain) {
  write(x, base, demod, style, slope, gain, x);
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CPU, m) {
  m.impl("epilogue_difference", TORCH_BOX(&deltaspace::epilogue_difference));
  m.impl("epilogue_difference_", TORCH_BOX(&deltaspace::epilogue_difference_));
}
