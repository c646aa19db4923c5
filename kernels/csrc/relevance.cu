// strength * delta_s where |relevance . delta_t| reaches the threshold, else 0: the products never leave the chip.
#include "gpu.h"

namespace deltaspace {

constexpr int kWarp = 32;
constexpr int kChannels = 32;  // per block: what its threads then write side by side

template <typename T, typename W>
__global__ void mask_kernel(const T* __restrict__ delta_s, const W* __restrict__ relevance,
                            const W* __restrict__ delta_t, T* __restrict__ y, int64_t batch, int64_t channels,
                            int64_t dim, W threshold, W strength) {
  __shared__ bool keep[kChannels];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first = blockIdx.x * static_cast<int64_t>(kChannels);
  for (int k = warp; k < kChannels && first + k < channels; k += kThreads / kWarp) {
    W sum = 0;
    for (int64_t e = lane; e < dim; e += kWarp) sum += relevance[(first + k) * dim + e] * delta_t[e];
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (lane == 0) keep[k] = (sum < 0 ? -sum : sum) >= threshold;
  }
  __syncthreads();
  const int64_t channel = first + threadIdx.x % kChannels;
  if (channel >= channels) return;
  for (int64_t b = threadIdx.x / kChannels; b < batch; b += kThreads / kChannels) {
    const int64_t i = b * channels + channel;
    y[i] = keep[threadIdx.x % kChannels] ? static_cast<T>(static_cast<W>(delta_s[i]) * strength) : static_cast<T>(W(0));
  }
}

Tensor relevance_mask(const Tensor& any, const Tensor& relevance, const Tensor& delta_t, double threshold,
                      double strength) {
  const Tensor delta_s = dense(any);
  STD_TORCH_CHECK(delta_s.dim() == 2 && relevance.dim() == 2 && relevance.size(0) == delta_s.size(1) &&
                      relevance.size(1) == delta_t.numel(),
                  "expected delta_s [B,S], relevance [S,E] and delta_t [E]");
  for (const Tensor* x : {&delta_s, &relevance, &delta_t}) {
    STD_TORCH_CHECK(x->is_contiguous() && (x == &delta_s || x->scalar_type() == wide_type(delta_s)),
                    "expected contiguous inputs, relevance and delta_t in float32");
  }
  const torch::stable::accelerator::DeviceGuard guard(delta_s.get_device_index());
  Tensor y = torch::stable::empty_like(delta_s);
  if (y.numel() == 0) return y;
  const int64_t channels = delta_s.size(1);
  with_type(delta_s, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    const unsigned blocks = static_cast<unsigned>((channels + kChannels - 1) / kChannels);
    mask_kernel<T, W><<<blocks, kThreads, 0, stream_of(delta_s)>>>(
        data<T>(delta_s), data<W>(relevance), data<W>(delta_t), data_out<T>(y), delta_s.size(0), channels,
        relevance.size(1), threshold, strength);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CUDA, m) { m.impl("relevance_mask", TORCH_BOX(&deltaspace::relevance_mask)); }
