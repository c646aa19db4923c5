// The exact box filter: one thread per result sums the pixels below it, times their weights; then scale and shift.
#include "gpu.h"

namespace deltaspace {

struct Sizes {
  int64_t c, h, w, out_h, out_w;
  bool last;
};

// Overlap of input pixel i with output pixel t, as a fraction of t; `source` pixels are resized to `target`.
template <typename W>
__device__ W share(int64_t i, int64_t t, int64_t source, int64_t target) {
  return static_cast<W>(min((t + 1) * source, (i + 1) * target) - max(t * source, i * target)) / static_cast<W>(source);
}

template <typename T, typename W>
__global__ void box_kernel(const T* __restrict__ x, const W* __restrict__ scale, const W* __restrict__ shift,
                           T* __restrict__ y, int64_t count, const Sizes s) {
  for (int64_t i = first_index(); i < count; i += stride()) {
    const int64_t inner = s.last ? s.c : 1;  // values per pixel
    const int64_t ox = i / inner % s.out_w, oy = i / inner / s.out_w % s.out_h, image = i / inner / s.out_w / s.out_h;
    const int64_t channel = s.last ? i % inner : image % s.c;
    const T* from = x + image * s.h * s.w * inner + i % inner;
    W sum = 0;
    for (int64_t iy = oy * s.h / s.out_h; iy * s.out_h < (oy + 1) * s.h; ++iy) {
      W line = 0;
      for (int64_t ix = ox * s.w / s.out_w; ix * s.out_w < (ox + 1) * s.w; ++ix) {
        line += share<W>(ix, ox, s.w, s.out_w) * static_cast<W>(from[(iy * s.w + ix) * inner]);
      }
      sum += share<W>(iy, oy, s.h, s.out_h) * line;
    }
    y[i] = static_cast<T>(scale == nullptr ? sum : sum * scale[channel] + shift[channel]);
  }
}

Tensor box_resample(const Tensor& any, int64_t height, int64_t width, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& shift) {
  const Tensor x = dense(any);
  const Shape s = shape_of(x);
  STD_TORCH_CHECK(height > 0 && width > 0 && s.h > 0 && s.w > 0, "expected sizes of at least 1");
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "expected scale and shift together");
  for (const auto* side : {&scale, &shift}) {
    STD_TORCH_CHECK(
        !*side || ((*side)->is_contiguous() && (*side)->numel() == s.c && (*side)->scalar_type() == wide_type(x)),
        "expected scale and shift [C] in float32");
  }
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = resized(x, s, height, width);
  if (y.numel() == 0) return y;
  const Sizes sizes{s.c, s.h, s.w, height, width, s.last};
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    box_kernel<T, W><<<blocks_for(y.numel()), kThreads, 0, stream_of(x)>>>(
        data<T>(x), scale ? data<W>(*scale) : nullptr, shift ? data<W>(*shift) : nullptr, data_out<T>(y), y.numel(),
        sizes);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CUDA, m) { m.impl("box_resample", TORCH_BOX(&deltaspace::box_resample)); }
