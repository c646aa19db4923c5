// gain * leaky_relu(x + bias) in one pass.
#include "cpu.h"

namespace deltaspace {

constexpr int64_t kGrain = 1 << 14;  // elements per task

template <typename T, typename W>
ALONE void row(const T* __restrict in, const W* __restrict bias, T* __restrict out, int64_t count, W slope, W gain) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) {
    const W z = widen(in[c]) + bias[c];
    out[c] = narrow<T>((z > 0 ? z : z * slope) * gain);
  }
}

template <typename T, typename W>
ALONE void plane(const T* __restrict in, W bias, T* __restrict out, int64_t count, W slope, W gain) {
#pragma omp simd
  for (int64_t p = 0; p < count; ++p) {
    const W z = widen(in[p]) + bias;
    out[p] = narrow<T>((z > 0 ? z : z * slope) * gain);
  }
}

Tensor bias_act(const Tensor& x, const Tensor& bias, double slope, double gain) {
  const bool image = x.dim() == 4;
  const int64_t channels = x.size(image ? 1 : x.dim() - 1);
  const bool last = image && !x.is_contiguous() && channels_last(x);
  STD_TORCH_CHECK(last || x.is_contiguous(), "expected a contiguous or channels_last input");
  STD_TORCH_CHECK(bias.is_contiguous() && bias.numel() == channels, "expected one bias per channel");
  STD_TORCH_CHECK(bias.scalar_type() == x.scalar_type(), "expected a bias of the input's type");
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    const T* in = data<T>(x);
    T* out = data_out<T>(y);
    std::vector<W> b(channels);
    for (int64_t c = 0; c < channels; ++c) b[c] = widen(data<T>(bias)[c]);
    const bool by_row = last || !image;
    const int64_t size = by_row ? channels : x.size(2) * x.size(3);
    parallel(x.numel() / size, kGrain / size, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (by_row) {
          row<T, W>(in + i * size, b.data(), out + i * size, size, slope, gain);
        } else {
          plane<T, W>(in + i * size, b[i % channels], out + i * size, size, slope, gain);
        }
      }
    });
  });
  return y;
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CPU, m) { m.impl("bias_act", TORCH_BOX(&deltaspace::bias_act)); }
