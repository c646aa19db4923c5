// Epilogue of a shared-weight convolution in one pass: y = style * gain * leaky_relu(x * demod + weight * noise + bias).
// Side inputs (demod and style [B,C], noise [1 or B,1,H,W], weight [1], bias [C]) are float, or double for double.
#include "gpu.h"

namespace deltaspace {

constexpr int64_t kChunk = 1024;  // pixels per block and per partial sum of the gradients
constexpr int kSums = 4;          // of the gradients of demod, style, bias, weight
constexpr int kLanes = 32;        // neighbours in memory that one row of a block reads
constexpr int kRows = 8;

template <typename W>
struct Sides {
  const W *demod, *noise, *weight, *bias, *style;  // style may be null
  int64_t channels, size, noise_step;              // size: pixels of a map
  bool last;
  W slope, gain;
};

template <typename T, typename W>
__global__ void epilogue_kernel(const T* __restrict__ x, T* __restrict__ y, int64_t count, const Sides<W> s) {
  const W weight = *s.weight;
  for (int64_t i = first_index(); i < count; i += stride()) {
    int64_t map, pixel;
    if (s.last) {
      const int64_t at = i / s.channels;
      pixel = at % s.size, map = at / s.size * s.channels + i % s.channels;
    } else {
      map = i / s.size, pixel = i % s.size;
    }
    const W noise = s.noise[map / s.channels * s.noise_step + pixel];
    const W z = static_cast<W>(x[i]) * s.demod[map] + (weight * noise + s.bias[map % s.channels]);
    const W scale = s.style == nullptr ? s.gain : s.gain * s.style[map];
    y[i] = static_cast<T>((z > 0 ? z : z * s.slope) * scale);
  }
}

// A block has kRows x kLanes threads for one sample and one chunk of pixels. In channels_last its lanes are channels,
// and every row takes each kRows-th pixel; in planes it has one channel and its threads are pixels.
template <typename T, typename W>
__global__ void epilogue_backward_kernel(const T* __restrict__ g, const T* __restrict__ x, T* __restrict__ gx,
                                         W* __restrict__ partial, int64_t chunks, const Sides<W> s) {
  __shared__ W shared[kSums][kRows][kLanes];
  const int lane = threadIdx.x, row = threadIdx.y;
  const int64_t sample = blockIdx.y, chunk = blockIdx.z;
  const int64_t channel = s.last ? blockIdx.x * static_cast<int64_t>(kLanes) + lane : blockIdx.x;
  const int64_t end = min((chunk + 1) * kChunk, s.size);
  W sums[kSums] = {0, 0, 0, 0};
  if (channel < s.channels) {
    const int64_t map = sample * s.channels + channel;
    const W demod = s.demod[map], bias = s.bias[channel], weight = *s.weight;
    const W style = s.style == nullptr ? W(1) : s.style[map];
    const int64_t step = s.last ? kRows : kRows * kLanes;
    for (int64_t p = chunk * kChunk + (s.last ? row : row * kLanes + lane); p < end; p += step) {
      const int64_t i = s.last ? (sample * s.size + p) * s.channels + channel : map * s.size + p;
      const W noise = s.noise[sample * s.noise_step + p], value = static_cast<W>(x[i]), grad = static_cast<W>(g[i]);
      const W z = value * demod + (weight * noise + bias);
      const W steep = (z > 0 ? W(1) : s.slope) * s.gain;
      const W gz = grad * style * steep;
      gx[i] = static_cast<T>(gz * demod);
      sums[0] += gz * value;
      sums[1] += grad * z * steep;
      sums[2] += gz;
      sums[3] += gz * noise;
    }
  }
  for (int k = 0; k < kSums; ++k) shared[k][row][lane] = sums[k];
  __syncthreads();
  if (row >= kSums) return;
  W total = 0;  // row k of the block finishes sum k
  for (int r = 0; r < kRows; ++r) total += shared[row][r][lane];
  if (!s.last) {
    for (int offset = kLanes / 2; offset > 0; offset /= 2) total += __shfl_down_sync(0xffffffffu, total, offset);
  }
  if (channel < s.channels && (s.last || lane == 0)) {
    partial[((sample * chunks + chunk) * kSums + row) * s.channels + channel] = total;
  }
}

void check(const Tensor& x, const Shape& s, const Tensor& demod, const Tensor& noise, const Tensor& weight,
           const Tensor& bias, const std::optional<Tensor>& style) {
  for (const Tensor* side : {&demod, &noise, &weight, &bias, style ? &*style : &bias}) {
    STD_TORCH_CHECK(side->is_contiguous() && side->scalar_type() == wide_type(x),
                    "expected contiguous side inputs in float32");
  }
  STD_TORCH_CHECK(demod.numel() == s.n * s.c && (!style || style->numel() == s.n * s.c), "expected one value per map");
  STD_TORCH_CHECK(bias.numel() == s.c && weight.numel() == 1, "expected one bias per channel and one weight");
  STD_TORCH_CHECK(noise.numel() == s.h * s.w || noise.numel() == s.n * s.h * s.w, "expected noise [1 or B,1,H,W]");
}

template <typename W>
Sides<W> sides(const Shape& s, const Tensor& demod, const Tensor& noise, const Tensor& weight, const Tensor& bias,
               const std::optional<Tensor>& style, double slope, double gain) {
  const int64_t size = s.h * s.w, step = noise.numel() == size ? 0 : size;
  return {data<W>(demod), data<W>(noise), data<W>(weight), data<W>(bias), style ? data<W>(*style) : nullptr,
          s.c, size, step, s.last, static_cast<W>(slope), static_cast<W>(gain)};
}

Tensor modulated_epilogue(const Tensor& x, const Tensor& demod, const Tensor& noise, const Tensor& weight,
                          const Tensor& bias, const std::optional<Tensor>& style, double slope, double gain) {
  const Shape s = shape_of(x);
  check(x, s, demod, noise, weight, bias, style);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    epilogue_kernel<T, W><<<blocks_for(x.numel()), kThreads, 0, stream_of(x)>>>(
        data<T>(x), data_out<T>(y), x.numel(), sides<W>(s, demod, noise, weight, bias, style, slope, gain));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
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
  STD_TORCH_CHECK(s.n < 65536 && chunks < 65536, "the batch or the picture is too large for one launch");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor gx = torch::stable::empty_like(x);
  Tensor partial = torch::stable::new_zeros(demod, {s.n, chunks, kSums, s.c});
  if (x.numel() > 0) {
    with_type(x, [&](auto zero) {
      using T = decltype(zero);
      using W = typename Wide<T>::type;
      const dim3 grid(s.last ? (s.c + kLanes - 1) / kLanes : s.c, s.n, chunks), block(kLanes, kRows);
      epilogue_backward_kernel<T, W><<<grid, block, 0, stream_of(x)>>>(
          data<T>(grad), data<T>(x), data_out<T>(gx), data_out<W>(partial), chunks,
          sides<W>(s, demod, noise, weight, bias, style, slope, gain));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  const std::vector<int64_t> axes{1};
  return {gx, torch::stable::sum(partial, axes)};
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CUDA, m) {
  m.impl("modulated_epilogue", TORCH_BOX(&deltaspace::modulated_epilogue));
  m.impl("modulated_epilogue_backward", TORCH_BOX(&deltaspace::modulated_epilogue_backward));
}
