// Epilogue of a shared-weight convolution in one pass: y = style * gain * leaky_relu(x * demod + weight * noise + bias).
// Side inputs (demod and style [B,C], noise [1 or B,1,H,W], weight [1], bias [C]) are float, or double for double.
#include "cpu.h"

namespace deltaspace {

constexpr int64_t kChunk = 256;  // pixels per task and per partial sum, so that results do not depend on threads
constexpr int kSums = 4;          // of the gradients of demod, style, bias, weight

template <typename T, typename W>
ALONE void pixel(const T* __restrict x, const W* __restrict demod, const W* __restrict bias, const W* __restrict scale,
                 W noise, W slope, T* __restrict y, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const W z = widen(x[c]) * demod[c] + (noise + bias[c]);
    y[c] = narrow<T>((z > 0 ? z : z * slope) * scale[c]);
  }
}

template <typename T, typename W>
ALONE void plane(const T* __restrict x, W demod, W bias, W scale, const W* __restrict noise, W weight, W slope,
                 T* __restrict y, int64_t size) {
#pragma omp simd
  for (int64_t p = 0; p < size; ++p) {
    const W z = widen(x[p]) * demod + (weight * noise[p] + bias);
    y[p] = narrow<T>((z > 0 ? z : z * slope) * scale);
  }
}

template <typename T, typename W>
ALONE void pixel_back(const T* __restrict g, const T* __restrict x, const W* __restrict demod,
                      const W* __restrict bias, const W* __restrict style, W noise, W weight, W slope, W gain,
                      T* __restrict gx, W* __restrict sums, int64_t channels) {
  W *__restrict to_demod = sums, *__restrict to_style = sums + channels, *__restrict to_bias = sums + 2 * channels,
    *__restrict to_weight = sums + 3 * channels;
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const W value = widen(x[c]), grad = widen(g[c]);
    const W z = value * demod[c] + (weight * noise + bias[c]);
    const W steep = (z > 0 ? W(1) : slope) * gain;
    const W gz = grad * style[c] * steep;
    gx[c] = narrow<T>(gz * demod[c]);
    to_demod[c] += gz * value;
    to_style[c] += grad * z * steep;
    to_bias[c] += gz;
    to_weight[c] += gz * noise;
  }
}

template <typename T, typename W>
ALONE void plane_back(const T* __restrict g, const T* __restrict x, W demod, W bias, W style,
                      const W* __restrict noise, W weight, W slope, W gain, T* __restrict gx, W* __restrict sums,
                      int64_t size) {
  W to_demod = 0, to_style = 0, to_bias = 0, to_weight = 0;
#pragma omp simd reduction(+ : to_demod, to_style, to_bias, to_weight)
  for (int64_t p = 0; p < size; ++p) {
    const W value = widen(x[p]), grad = widen(g[p]);
    const W z = value * demod + (weight * noise[p] + bias);
    const W steep = (z > 0 ? W(1) : slope) * gain;
    const W gz = grad * style * steep;
    gx[p] = narrow<T>(gz * demod);
    to_demod += gz * value;
    to_style += grad * z * steep;
    to_bias += gz;
    to_weight += gz * noise[p];
  }
  sums[0] = to_demod, sums[1] = to_style, sums[2] = to_bias, sums[3] = to_weight;
}

void check(const Tensor& x, const Shape& s, const Tensor& demod, const Tensor& noise, const Tensor& weight,
           const Tensor& bias, const std::optional<Tensor>& style) {
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (const Tensor* side : {&demod, &noise, &weight, &bias, style ? &*style : &bias}) {
    STD_TORCH_CHECK(side->is_contiguous() && side->scalar_type() == wide, "expected contiguous side inputs in float32");
  }
  STD_TORCH_CHECK(demod.numel() == s.n * s.c && (!style || style->numel() == s.n * s.c), "expected one value per map");
  STD_TORCH_CHECK(bias.numel() == s.c && weight.numel() == 1, "expected one bias per channel and one weight");
  STD_TORCH_CHECK(noise.numel() == s.h * s.w || noise.numel() == s.n * s.h * s.w, "expected noise [1 or B,1,H,W]");
}

Tensor modulated_epilogue(const Tensor& x, const Tensor& demod, const Tensor& noise, const Tensor& weight,
                          const Tensor& bias, const std::optional<Tensor>& style, double slope, double gain) {
  const Shape s = shape_of(x);
  check(x, s, demod, noise, weight, bias, style);
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    const int64_t size = s.h * s.w, maps = s.n * s.c, step = noise.numel() == size ? 0 : size;
    const T* in = data<T>(x);
    T* out = data_out<T>(y);
    const W *d = data<W>(demod), *n = data<W>(noise), *b = data<W>(bias), strength = *data<W>(weight);
    std::vector<W> scale(maps, W(gain));
    if (style) {
      for (int64_t i = 0; i < maps; ++i) scale[i] *= data<W>(*style)[i];
    }
    if (s.last) {
      parallel(s.n * size, kChunk, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          const int64_t i = p / size, at = i * s.c;
          pixel<T, W>(in + p * s.c, d + at, b, scale.data() + at, strength * n[i * step + p % size], slope,
                      out + p * s.c, s.c);
        }
      });
    } else {
      parallel(maps, kChunk * 16 / size, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          plane<T, W>(in + i * size, d[i], b[i % s.c], scale[i], n + i / s.c * step, strength, slope, out + i * size,
                      size);
        }
      });
    }
  });
  return y;
}

// The gradient of x, and [B,4,C] sums over pixels: the gradients of demod and style, and per sample of bias and weight.
std::tuple<Tensor, Tensor> modulated_epilogue_backward(const Tensor& any, const Tensor& x, const Tensor& demod,
                                                       const Tensor& noise, const Tensor& weight, const Tensor& bias,
                                                       const std::optional<Tensor>& style, double slope, double gain) {
  STD_TORCH_CHECK(any.numel() == x.numel() && any.scalar_type() == x.scalar_type(), "expected a gradient like the input");
  const Tensor grad = laid_out_like(any, x);
  const Shape s = shape_of(x);
  check(x, s, demod, noise, weight, bias, style);
  const int64_t size = s.h * s.w, chunks = (size + kChunk - 1) / kChunk;
  Tensor gx = torch::stable::empty_like(x);
  Tensor partial = torch::stable::new_zeros(demod, {s.n, chunks, kSums, s.c});
  if (x.numel() > 0) {
    with_type(x, [&](auto zero) {
      using T = decltype(zero);
      using W = typename Wide<T>::type;
      const int64_t step = noise.numel() == size ? 0 : size;
      const T *in = data<T>(x), *gin = data<T>(grad);
      T* out = data_out<T>(gx);
      W* sums = data_out<W>(partial);
      const W *d = data<W>(demod), *n = data<W>(noise), *b = data<W>(bias), strength = *data<W>(weight);
      std::vector<W> ones(style ? 0 : s.n * s.c, W(1));
      const W* scale = style ? data<W>(*style) : ones.data();
      parallel(s.n * chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t i = task / chunks, first = task % chunks * kChunk, last = std::min(first + kChunk, size);
          const W* picture = n + i * step;
          W* sum = sums + task * kSums * s.c;
          if (s.last) {
            for (int64_t p = first; p < last; ++p) {
              const int64_t at = (i * size + p) * s.c;
              pixel_back<T, W>(gin + at, in + at, d + i * s.c, b, scale + i * s.c, picture[p], strength, slope, gain,
                               out + at, sum, s.c);
            }
          } else {
            for (int64_t c = 0; c < s.c; ++c) {
              const int64_t map = i * s.c + c, at = map * size + first;
              W four[kSums];
              plane_back<T, W>(gin + at, in + at, d[map], b[c], scale[map], picture + first, strength, slope, gain,
                               out + at, four, last - first);
              for (int k = 0; k < kSums; ++k) sum[k * s.c + c] = four[k];
            }
          }
        }
      });
    });
  }
  const std::vector<int64_t> axes{1};
  return {gx, torch::stable::sum(partial, axes)};
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CPU, m) {
  m.impl("modulated_epilogue", TORCH_BOX(&deltaspace::modulated_epilogue));
  m.impl("modulated_epilogue_backward", TORCH_BOX(&deltaspace::modulated_epilogue_backward));
}
