// Zeros between samples, a filter, every n-th sample: one thread per result, which visits only taps that meet a sample.
#include "gpu.h"

namespace deltaspace {

struct Sizes {
  int64_t c, h, w, out_h, out_w, taps_y, taps_x, up, down, top, left;
  bool last, flip;
};

__host__ __device__ inline int64_t divided(int64_t a, int64_t b) {  // rounds down
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}

template <typename T, typename W>
__global__ void upfirdn2d_kernel(const T* __restrict__ x, const W* __restrict__ kernel, T* __restrict__ y,
                                 int64_t count, const Sizes s) {
  for (int64_t i = first_index(); i < count; i += stride()) {
    const int64_t inner = s.last ? s.c : 1;  // values per pixel
    const int64_t channel = i % inner, ox = i / inner % s.out_w, oy = i / inner / s.out_w % s.out_h;
    const T* image = x + i / inner / s.out_w / s.out_h * s.h * s.w * inner + channel;
    const int64_t y0 = oy * s.down - s.top, x0 = ox * s.down - s.left;  // of the first tap, among stuffed samples
    const int64_t first_y = -divided(-y0, s.up), first_x = -divided(-x0, s.up);  // the first sample at or after it
    W sum = 0;
    for (int64_t iy = first_y; iy * s.up - y0 < s.taps_y; ++iy) {
      if (iy < 0 || iy >= s.h) continue;
      for (int64_t ix = first_x; ix * s.up - x0 < s.taps_x; ++ix) {
        if (ix < 0 || ix >= s.w) continue;
        const int64_t tap = (iy * s.up - y0) * s.taps_x + (ix * s.up - x0);
        sum += kernel[s.flip ? s.taps_y * s.taps_x - 1 - tap : tap] * static_cast<W>(image[(iy * s.w + ix) * inner]);
      }
    }
    y[i] = static_cast<T>(sum);
  }
}

Tensor upfirdn2d(const Tensor& any, const Tensor& kernel, int64_t up, int64_t down, int64_t top, int64_t bottom,
                 int64_t left, int64_t right, bool flip) {
  const Tensor x = dense(any);
  const Shape s = shape_of(x);
  STD_TORCH_CHECK(kernel.dim() == 2 && kernel.is_contiguous() && kernel.scalar_type() == wide_type(x),
                  "expected a contiguous kernel [k,k] in float32");
  STD_TORCH_CHECK(up > 0 && down > 0 && (up == 1 || down == 1), "expected up or down to be 1");
  const int64_t taps_y = kernel.size(0), taps_x = kernel.size(1);
  const int64_t h = divided(s.h * up + top + bottom - taps_y, down) + 1;
  const int64_t w = divided(s.w * up + left + right - taps_x, down) + 1;
  STD_TORCH_CHECK(h > 0 && w > 0, "the filter is larger than its padded input");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = resized(x, s, h, w);
  if (y.numel() == 0) return y;
  const Sizes sizes{s.c, s.h, s.w, h, w, taps_y, taps_x, up, down, top, left, s.last, flip};
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    upfirdn2d_kernel<T, W><<<blocks_for(y.numel()), kThreads, 0, stream_of(x)>>>(
        data<T>(x), data<W>(kernel), data_out<T>(y), y.numel(), sizes);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CUDA, m) { m.impl("upfirdn2d", TORCH_BOX(&deltaspace::upfirdn2d)); }
