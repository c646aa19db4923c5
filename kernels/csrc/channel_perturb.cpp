// y[n,k,v] = of_raw[n,k,v] * raw[n] + of_parts[n,k,v] * parts[n,k], factors per map, with channels last.
#include "cpu.h"

namespace deltaspace {

constexpr int64_t kGrain = 1 << 14;  // values per task

template <typename T, typename W>
ALONE void row(const T* __restrict raw, const T* __restrict part, const W* __restrict of_raw,
               const W* __restrict of_part, T* __restrict y, int64_t pixels, int64_t c, int64_t step) {
  for (int64_t i = 0; i < pixels; ++i, raw += c, part += step, y += c) {
    int64_t o = 0;
#ifdef __AVX512BF16__
    if constexpr (std::is_same_v<T, BFloat16>) {
      for (; o + kLanes <= c; o += kLanes) {
        const __m512 of_this = _mm512_mul_ps(widen16(part + o), _mm512_loadu_ps(of_part + o));
        narrow16(_mm512_fmadd_ps(widen16(raw + o), _mm512_loadu_ps(of_raw + o), of_this), y + o);
      }
    }
#endif
#pragma omp simd
    for (int64_t rest = o; rest < c; ++rest) {
      y[rest] = narrow<T>(widen(raw[rest]) * of_raw[rest] + widen(part[rest]) * of_part[rest]);
    }
  }
}

// raw [N,O,H,W], parts [N,K*O,H,W], both factors [N,K,V,O] -> [N*K*V,O,H,W].
Tensor channel_perturb(const Tensor& raw, const Tensor& parts, const Tensor& of_raw, const Tensor& of_parts) {
  STD_TORCH_CHECK(of_raw.dim() == 4 && of_parts.dim() == 4 && raw.dim() == 4 && parts.dim() == 4, "expected 4 axes each");
  const int64_t n = raw.size(0), c = raw.size(1), h = raw.size(2), w = raw.size(3);
  const int64_t k = of_raw.size(1), v = of_raw.size(2);
  const ScalarType wide = raw.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(channels_last(raw) && channels_last(parts) && parts.scalar_type() == raw.scalar_type() &&
                      parts.numel() == n * k * c * h * w, "expected raw and parts of one type with channels last");
  for (const Tensor* side : {&of_raw, &of_parts}) {
    STD_TORCH_CHECK(side->is_contiguous() && side->scalar_type() == wide && side->numel() == n * k * v * c,
                    "expected factors [N,K,V,O] in float32");
  }
  Tensor y = resized(raw, {n * k * v, c, h, w, true}, h, w);
  if (y.numel() == 0) return y;
  with_type(raw, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    const T *from = data<T>(raw), *some = data<T>(parts);
    const W *factor = data<W>(of_raw), *other = data<W>(of_parts);
    T* out = data_out<T>(y);
    parallel(n * k * v * h, kGrain / (w * c), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t which = i / h, picture = which / (k * v), line = picture * h + i % h;
        row<T, W>(from + line * w * c, some + line * w * k * c + which / v % k * c, factor + which * c, other + which * c,
                  out + i * w * c, w, c, k * c);
      }
    });
  });
  return y;
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CPU, m) { m.impl("channel_perturb", TORCH_BOX(&deltaspace::channel_perturb)); }
