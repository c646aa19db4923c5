// Zeros between samples, a filter, every n-th sample: by rows of pixels x channels, or of pixels in planes.
#include "cpu.h"

#include <cmath>

namespace deltaspace {

constexpr int64_t kGrain = 1 << 14;  // results per task

inline int64_t divided(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }  // rounds down

// The filter as a sum of columns x rows: one when it is separable, as StyleGAN's is, else one per row.
template <typename W>
struct Term {
  std::vector<W> column, row;
};

template <typename W>
std::vector<Term<W>> terms_of(const std::vector<W>& k, int64_t height, int64_t width) {
  int64_t top = 0;
  for (int64_t i = 0; i < height * width; ++i) top = std::abs(k[i]) > std::abs(k[top]) ? i : top;
  const int64_t y = top / width, x = top % width;
  Term<W> one{std::vector<W>(height), std::vector<W>(k.begin() + y * width, k.begin() + (y + 1) * width)};
  const W peak = k[top], near = std::abs(peak) * (sizeof(W) == 8 ? W(1e-15) : W(1e-7));
  bool separable = peak != 0;
  for (int64_t i = 0; i < height && separable; ++i) {
    one.column[i] = k[i * width + x] / peak;
    for (int64_t j = 0; j < width; ++j) separable &= std::abs(one.column[i] * one.row[j] - k[i * width + j]) <= near;
  }
  if (separable) return {one};
  std::vector<Term<W>> terms;
  for (int64_t i = 0; i < height; ++i) {
    Term<W> term{std::vector<W>(height), std::vector<W>(k.begin() + i * width, k.begin() + (i + 1) * width)};
    term.column[i] = 1;
    terms.push_back(term);
  }
  return terms;
}

// Every `step`-th pixel of a line.
template <typename W>
ALONE void pick(const W* __restrict line, W* __restrict out, int64_t count, int64_t c, int64_t step) {
  if (c == 1) {
    for (int64_t i = 0; i < count; ++i) out[i] = line[i * step];
  } else {
    for (int64_t i = 0; i < count; ++i) std::copy(line + i * step * c, line + (i * step + 1) * c, out + i * c);
  }
}

template <typename T, typename W>
ALONE void interleave(const W* __restrict even, const W* __restrict odd, T* __restrict out, int64_t pairs) {
#pragma omp simd
  for (int64_t i = 0; i < pairs; ++i) out[2 * i] = narrow<T>(even[i]), out[2 * i + 1] = narrow<T>(odd[i]);
}

template <typename T, typename W>
void run(const T* x, T* y, const std::vector<Term<W>>& terms, int64_t images, int64_t height, int64_t width, int64_t c,
         int64_t out_height, int64_t out_width, int64_t up, int64_t down, int64_t pad_y, int64_t pad_x) {
  const int64_t taps_y = terms[0].column.size(), taps_x = terms[0].row.size(), count = terms.size();
  const int64_t left = std::max<int64_t>(0, -divided(-pad_x, up));
  const int64_t right = std::max<int64_t>(0, divided((out_width - 1) * down + taps_x - 1 - pad_x, up) - width + 1);
  const int64_t per_phase = (left + width + right + down - 1) / down, padded = per_phase * down * c;
  const int64_t phase_size = (out_width + up - 1) / up * c;
  parallel(images * out_height, kGrain / (out_width * c), [&](int64_t begin, int64_t end) {
    std::vector<W> middle(padded * count), straight(down > 1 ? padded : 0), sums(up * phase_size);
    std::vector<W> scratch(std::max(padded, phase_size));
    std::vector<const T*> rows;
    std::vector<const W*> shifted;
    std::vector<W> weights;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t oy = task % out_height;
      const T* image = x + task / out_height * height * width * c;
      T* out = y + task * out_width * c;
      for (int64_t k = 0; k < count; ++k) {
        W* line = (down > 1 ? straight.data() : middle.data() + k * padded) + left * c;
        rows.clear(), weights.clear();
        for (int64_t t = 0; t < taps_y; ++t) {
          const int64_t at = oy * down + t - pad_y, iy = divided(at, up);
          if (iy * up != at || iy < 0 || iy >= height || terms[k].column[t] == 0) continue;
          rows.push_back(image + iy * width * c), weights.push_back(terms[k].column[t]);
        }
        weighted<T, W, W>(line, rows, weights, width * c, scratch.data());
        if (down == 1) continue;
        for (int64_t q = 0; q < down; ++q) {
          pick<W>(straight.data() + q * c, middle.data() + k * padded + q * per_phase * c, per_phase, c, down);
        }
      }
      for (int64_t phase = 0; phase < std::min(up, out_width); ++phase) {
        shifted.clear(), weights.clear();
        for (int64_t k = 0; k < count; ++k) {
          for (int64_t t = 0; t < taps_x; ++t) {
            const int64_t at = phase + t - pad_x, ix = divided(at, up);
            if (ix * up != at) continue;
            const int64_t column = (left + ix) % down * per_phase + (left + ix) / down;
            shifted.push_back(middle.data() + k * padded + column * c), weights.push_back(terms[k].row[t]);
          }
        }
        const int64_t size = (out_width - phase + up - 1) / up * c;
        if (up == 1) {
          weighted<W, T, W>(out, shifted, weights, size, scratch.data());
        } else {
          weighted<W, W, W>(sums.data() + phase * phase_size, shifted, weights, size, scratch.data());
        }
      }
      if (up == 1) continue;
      const bool pairs = up == 2 && c == 1 && out_width % 2 == 0;
      if (pairs) interleave<T, W>(sums.data(), sums.data() + phase_size, out, out_width / 2);
      for (int64_t ox = 0; ox < out_width && !pairs; ++ox) {
        const W* from = sums.data() + ox % up * phase_size + ox / up * c;
        for (int64_t i = 0; i < c; ++i) out[ox * c + i] = narrow<T>(from[i]);
      }
    }
  });
}

Tensor upfirdn2d(const Tensor& any, const Tensor& kernel, int64_t up, int64_t down, int64_t top, int64_t bottom,
                 int64_t left, int64_t right, bool flip) {
  const Tensor x = dense(any);
  const Shape s = shape_of(x);
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(kernel.dim() == 2 && kernel.is_contiguous() && kernel.scalar_type() == wide,
                  "expected a contiguous kernel [k,k] in float32");
  const int64_t taps_y = kernel.size(0), taps_x = kernel.size(1);
  const int64_t h = divided(s.h * up + top + bottom - taps_y, down) + 1;
  const int64_t w = divided(s.w * up + left + right - taps_x, down) + 1;
  STD_TORCH_CHECK(up > 0 && down > 0 && (up == 1 || down == 1), "expected up or down to be 1");
  STD_TORCH_CHECK(h > 0 && w > 0, "the filter is larger than its padded input");
  Tensor y = resized(x, s, h, w);
  if (y.numel() == 0) return y;
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    using W = typename Wide<T>::type;
    std::vector<W> k(data<W>(kernel), data<W>(kernel) + taps_y * taps_x);
    if (flip) std::reverse(k.begin(), k.end());
    const int64_t images = s.last ? s.n : s.n * s.c, c = s.last ? s.c : 1;
    run<T, W>(data<T>(x), data_out<T>(y), terms_of<W>(k, taps_y, taps_x), images, s.h, s.w, c, h, w, up, down, top,
              left);
  });
  return y;
}

}  // namespace deltaspace

STABLE_TORCH_LIBRARY_IMPL(deltaspace, CPU, m) { m.impl("upfirdn2d", TORCH_BOX(&deltaspace::upfirdn2d)); }
