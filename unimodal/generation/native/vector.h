// Sixteen floats: one register of AVX-512, or two of AVX2. Both give the same bits.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && \
    defined(__AVX512VNNI__)
#define WIDE 1
#else
#define WIDE 0
#endif

constexpr int64_t LANES = 16;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

inline __m256 widen_8_bfloat16(const uint8_t* x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x)), 16));
}
inline __m256 widen_8_int8(const uint8_t* x) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)x)));
}

#if WIDE

struct Floats {
    __m512 v;
};

inline Floats load(const float* x) { return {_mm512_loadu_ps(x)}; }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x.v); }
inline Floats spread(float x) { return {_mm512_set1_ps(x)}; }
inline Floats load_half(const float* x) { return {_mm512_zextps256_ps512(_mm256_loadu_ps(x))}; }  // zeros behind it
inline __m256 first_half(Floats x) { return _mm512_castps512_ps256(x.v); }
inline __m256 second_half(Floats x) { return _mm512_extractf32x8_ps(x.v, 1); }

inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats greater(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats smaller(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats round_off(Floats x) {
    return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// y * 2^n for whole n from -126 to 127
inline Floats scale_by_power(Floats y, Floats n) {
    const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
    return {_mm512_mul_ps(y.v, _mm512_castsi512_ps(power))};
}
// y where x >= limit, else 0
inline Floats keep_from(Floats limit, Floats x, Floats y) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_GE_OQ), y.v)};
}

inline Floats widen_bfloat16(const uint8_t* x) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16))};
}
inline Floats widen_int8(const uint8_t* x) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)x)))};
}
inline Floats widen_half(const uint8_t* x) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x))}; }

// Of 16 pairs of bfloat16 the lower ones, and the upper ones.
inline void split_pairs(const uint8_t* x, Floats& lower, Floats& upper) {
    const __m512i pairs = _mm512_loadu_si512(x);
    lower.v = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    upper.v = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000)));
}

#else

struct Floats {
    __m256 low, high;
};

inline Floats load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
inline void store(float* to, Floats x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}
inline Floats spread(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load_half(const float* x) { return {_mm256_loadu_ps(x), _mm256_setzero_ps()}; }  // zeros behind it
inline __m256 first_half(Floats x) { return x.low; }
inline __m256 second_half(Floats x) { return x.high; }

inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats greater(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Floats smaller(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Floats round_off(Floats x) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.low, nearest), _mm256_round_ps(x.high, nearest)};
}
inline __m256 make_power(__m256 n) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
// y * 2^n for whole n from -126 to 127
inline Floats scale_by_power(Floats y, Floats n) { return y * Floats{make_power(n.low), make_power(n.high)}; }
// y where x >= limit, else 0
inline Floats keep_from(Floats limit, Floats x, Floats y) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, limit.low, _CMP_GE_OQ), y.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, limit.high, _CMP_GE_OQ), y.high)};
}

inline Floats widen_bfloat16(const uint8_t* x) { return {widen_8_bfloat16(x), widen_8_bfloat16(x + 16)}; }
inline Floats widen_int8(const uint8_t* x) { return {widen_8_int8(x), widen_8_int8(x + 8)}; }
inline Floats widen_half(const uint8_t* x) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)x)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(x + 16)))};
}

// Of 16 pairs of bfloat16 the lower ones, and the upper ones.
inline void split_pairs(const uint8_t* x, Floats& lower, Floats& upper) {
    const __m256i a = _mm256_loadu_si256((const __m256i*)x), b = _mm256_loadu_si256((const __m256i*)(x + 32));
    const __m256i mask = _mm256_set1_epi32(0xFFFF0000);
    lower = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
    upper = {_mm256_castsi256_ps(_mm256_and_si256(a, mask)), _mm256_castsi256_ps(_mm256_and_si256(b, mask))};
}

#endif

inline float sum_lanes(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float max_lanes(__m256 v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

inline float sum_lanes(Floats x) { return sum_lanes(_mm256_add_ps(first_half(x), second_half(x))); }
inline float max_lanes(Floats x) { return max_lanes(_mm256_max_ps(first_half(x), second_half(x))); }

// exp(x) to 1e-7 of its value (the polynomial of Cephes); 0 far below.
inline Floats exponential(Floats x) {
    const Floats floor_at = spread(-87.3f), whole = x;
    x = smaller(greater(x, floor_at), spread(88.3f));
    const Floats n = round_off(x * spread(1.44269504088896341f));
    x = multiply_add(n, spread(-0.693359375f), x);
    x = multiply_add(n, spread(2.12194440e-4f), x);
    Floats y = spread(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = multiply_add(y, x, spread(c));
    y = multiply_add(y, x * x, x + spread(1.0f));
    return keep_from(floor_at, whole, scale_by_power(y, n));
}

inline Floats hyperbolic_tangent(Floats x) {
    const Floats one = spread(1.0f), two = spread(2.0f);
    return one - two / (exponential(x * two) + one);
}

inline float half_to_float(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

inline uint16_t float_to_half(float f) {
    return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(f), _MM_FROUND_TO_NEAREST_INT));
}
