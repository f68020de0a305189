// Included once by each kernels_*.cc, which is compiled for one instruction set. Everything here is static: a
// shared inline function would be merged by the linker with one compiled for a newer processor. No header
// with templates or inline functions may be included for the same reason, intrinsics and C headers excepted.

static inline float half_to_float(unsigned short bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  const unsigned sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 0x1.0p-24f;
    return sign != 0 ? -value : value;
  }
  const unsigned out = exponent == 31 ? (sign | 0x7f800000u | (fraction << 13))
                                      : (sign | ((exponent + 112) << 23) | (fraction << 13));
  float value;
  __builtin_memcpy(&value, &out, 4);
  return value;
#endif
}

#if defined(__AVX512F__)
constexpr unsigned kLanes = 64;
#else
constexpr unsigned kLanes = 32;
#endif

/// Sums kLanes partial sums pairwise, so that the order does not depend on the compiler.
static inline float reduce(float* lanes) {
  for (unsigned width = kLanes / 2; width > 0; width /= 2)
    for (unsigned i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

static float dot_f32(const float* a, const float* b, std::size_t n) {
  alignas(64) float lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (unsigned j = 0; j < kLanes; ++j) lanes[j] += a[i + j] * b[i + j];
  float tail = 0;
  for (; i < n; ++i) tail += a[i] * b[i];
  return reduce(lanes) + tail;
}

static float dot_f16(const std::uint16_t* a, const float* b, std::size_t n) {
  alignas(64) float lanes[kLanes] = {};
  std::size_t i = 0;
#if defined(__AVX512F__)
  __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
  for (; i + 64 <= n; i += 64) {
    const auto load = [&](std::size_t at) {
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + at)));
    };
    s0 = _mm512_fmadd_ps(load(i), _mm512_loadu_ps(b + i), s0);
    s1 = _mm512_fmadd_ps(load(i + 16), _mm512_loadu_ps(b + i + 16), s1);
    s2 = _mm512_fmadd_ps(load(i + 32), _mm512_loadu_ps(b + i + 32), s2);
    s3 = _mm512_fmadd_ps(load(i + 48), _mm512_loadu_ps(b + i + 48), s3);
  }
  _mm512_store_ps(lanes, s0), _mm512_store_ps(lanes + 16, s1), _mm512_store_ps(lanes + 32, s2),
      _mm512_store_ps(lanes + 48, s3);
#elif defined(__F16C__)
  __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
  for (; i + 32 <= n; i += 32) {
    const auto load = [&](std::size_t at) {
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + at)));
    };
    s0 = _mm256_fmadd_ps(load(i), _mm256_loadu_ps(b + i), s0);
    s1 = _mm256_fmadd_ps(load(i + 8), _mm256_loadu_ps(b + i + 8), s1);
    s2 = _mm256_fmadd_ps(load(i + 16), _mm256_loadu_ps(b + i + 16), s2);
    s3 = _mm256_fmadd_ps(load(i + 24), _mm256_loadu_ps(b + i + 24), s3);
  }
  _mm256_store_ps(lanes, s0), _mm256_store_ps(lanes + 8, s1), _mm256_store_ps(lanes + 16, s2),
      _mm256_store_ps(lanes + 24, s3);
#endif
  float tail = 0;
  for (; i < n; ++i) tail += half_to_float(a[i]) * b[i];
  return reduce(lanes) + tail;
}

static float dot_bf16(const std::uint16_t* a, const float* b, std::size_t n) {
  alignas(64) float lanes[kLanes] = {};
  const auto widen = [](std::uint16_t bits) {
    const unsigned out = static_cast<unsigned>(bits) << 16;
    float value;
    __builtin_memcpy(&value, &out, 4);
    return value;
  };
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (unsigned j = 0; j < kLanes; ++j) lanes[j] += widen(a[i + j]) * b[i + j];
  float tail = 0;
  for (; i < n; ++i) tail += widen(a[i]) * b[i];
  return reduce(lanes) + tail;
}

static float dot_q8_0(const std::byte* a, const ActivationBlock* b, std::size_t n) {
#if defined(__AVX2__)
  __m256 sum = _mm256_setzero_ps();
  for (std::size_t block = 0; block < n / 32; ++block, a += 34, ++b) {
    unsigned short scale;
    __builtin_memcpy(&scale, a, 2);
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + 2));
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b->q));
    // |w| times x with w's sign: the instructions want one unsigned factor.
    const __m256i magnitude = _mm256_sign_epi8(w, w), signed_x = _mm256_sign_epi8(x, w);
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    const __m256i products = _mm256_dpbusd_epi32(_mm256_setzero_si256(), magnitude, signed_x);
#else
    const __m256i products =
        _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_x), _mm256_set1_epi16(1));
#endif
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(half_to_float(scale) * b->scale), sum);
  }
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, sum);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
#else
  float sum = 0;
  for (std::size_t block = 0; block < n / 32; ++block, a += 34, ++b) {
    unsigned short scale;
    __builtin_memcpy(&scale, a, 2);
    int products = 0;
    for (int j = 0; j < 32; ++j) products += static_cast<int>(static_cast<signed char>(a[2 + j])) * b->q[j];
    sum += half_to_float(scale) * b->scale * static_cast<float>(products);
  }
  return sum;
#endif
}

/// Symmetric, per block of 32: scale = max|x| / 127, as llama.cpp's Q8_0 activations.
static void quantize(const float* x, ActivationBlock* out, std::size_t n) {
  for (std::size_t block = 0; block < n / 32; ++block, x += 32, ++out) {
    float largest = 0;
    for (int j = 0; j < 32; ++j) {
      const float magnitude = __builtin_fabsf(x[j]);
      largest = magnitude > largest ? magnitude : largest;
    }
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    out->scale = largest / 127.0f;
    for (int j = 0; j < 32; ++j) {
      float scaled = x[j] * inverse;
      scaled = scaled > 127.0f ? 127.0f : scaled < -127.0f ? -127.0f : scaled;
      out->q[j] = static_cast<signed char>(static_cast<int>(scaled + (scaled < 0 ? -0.5f : 0.5f)));
    }
  }
}

static void axpy(float* y, const float* x, float scale, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] += scale * x[i];
}

static float sum_of_squares(const float* x, std::size_t n) { return dot_f32(x, x, n); }
