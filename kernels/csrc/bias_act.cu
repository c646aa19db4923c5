// gain * leaky_relu(x + bias) in one pass.
#include "gpu.h"

namespace deltaspace {

// The channel of element i is i / inner % channels.
template <typename T, typename W>
__global__ void bias_act_kernel(const T* __restrict__ x, const T* __restrict__ bias, T* __restrict__ y, int64_t count,
                                int64_t inner, int64_t channels, W slope, W gain) {
  for (int64_t i = first_index(); i < count; i += stride()) {
    const W z = static_cast<W>(x[i]) + static_cast<W>(bias[i / inner % channels]);
    y[i] = static_cast<T>((z > 0 ? z : z * slope) * gain);
  }
}

Tensor bias_act(const Tensor& x, const Tensor& bias, double slope, double gain) {
  const bool image = x.dim() == 4;
  const int64_t channels = x.size(image ? 1 : x.dim() - 1);
  const bool last = image && !x.is_contiguous() && channels_last(x);
  STD_TORCH_CHECK(last || x.is_contiguous(), "expected a contiguous or channels_last input");
  STD_TORCH_CHECK(bias.is_contiguous() && bias.numel() == channels, "expected one bias per channel");
  STD_TORCH_CHECK(bias.scalar_type() == x.scalar_type(), "expected a bias of the input's type");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  const int64_t inner = last || !image ? 1 : x.size(2) * x.size(3);
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    bias_act_kernel<T, W><<<blocks_for(x.numel()), kThreads, 0, stream_of(x)>>>(
        data<T>(x), data<T>(bias), data_out<T>(y), x.numel(), inner, channels, slope, gain);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CUDA, m) { m.impl("bias_act", TORCH_BOX(&deltaspace::bias_act)); }
