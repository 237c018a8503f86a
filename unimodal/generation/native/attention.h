// Attention of new tokens over a cache of float32, bfloat16 or 8-bit keys and values.
//
// A cache is [layers, 2, key/value heads, slots, head width]; 8-bit entries have a float16 scale for each head and token,
// [layers, 2, key/value heads, slots]. A stream's entries lie in blocks of slots, in any order and maybe shared with other
// streams. Keys are summed up from the first visible one on in one order, so a stream does not depend on the blocks that
// it lies in, nor on other streams.

#pragma once

#include <vector>

#include "products.h"

enum CacheKind : int64_t { CACHE_FLOAT32 = 0, CACHE_BFLOAT16 = 1, CACHE_INT8 = 2 };

constexpr int64_t CHUNK = 64;  // entries of a block, as in paged_cache.py; they are made floats together

inline int64_t entry_bytes(int64_t kind) { return kind == CACHE_FLOAT32 ? 4 : kind == CACHE_BFLOAT16 ? 2 : 1; }

// exp(x) to 1e-7 of its value (the polynomial of Cephes); 0 far below.
inline __m256 exponential(__m256 x) {
    const __m256 floor_at = _mm256_set1_ps(-87.3f);
    const __m256 alive = _mm256_cmp_ps(x, floor_at, _CMP_GE_OQ);
    x = _mm256_min_ps(_mm256_max_ps(x, floor_at), _mm256_set1_ps(88.3f));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    x = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    x = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), x);
    __m256 y = _mm256_set1_ps(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(c));
    y = _mm256_fmadd_ps(y, _mm256_mul_ps(x, x), _mm256_add_ps(x, _mm256_set1_ps(1.0f)));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(power)), alive);
}

inline __m256 hyperbolic_tangent(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f), two = _mm256_set1_ps(2.0f);
    return _mm256_sub_ps(one, _mm256_div_ps(two, _mm256_add_ps(exponential(_mm256_mul_ps(x, two)), one)));
}

inline float half_to_float(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

inline uint16_t float_to_half(float f) {
    return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(f), _MM_FROUND_TO_NEAREST_INT));
}

// The entries of one head and one stream of a cache. table: the first slot of each block.
struct Entries {
    uint8_t* at;
    uint16_t* scales;
    const int64_t* table;
    int64_t kind, width;

    int64_t find(int64_t number) const { return table[number / CHUNK] + number % CHUNK; }

    void write(int64_t number, const float* x) const {
        const int64_t slot = find(number);
        uint8_t* to = at + slot * width * entry_bytes(kind);
        if (kind == CACHE_FLOAT32) {
            std::memcpy(to, x, width * sizeof(float));
        } else if (kind == CACHE_BFLOAT16) {
            for (int64_t i = 0; i < width; i++) {
                uint32_t bits;
                std::memcpy(&bits, x + i, 4);
                bits += 0x7FFF + ((bits >> 16) & 1);  // to the nearest, ties to even
                ((uint16_t*)to)[i] = (uint16_t)(bits >> 16);
            }
        } else {
            float most = 0;
            for (int64_t i = 0; i < width; i++) most = std::max(most, std::fabs(x[i]));
            const uint16_t half = float_to_half(most / 127.0f);
            const float scale = half_to_float(half), inverse = scale > 0 ? 1.0f / scale : 0.0f;
            scales[slot] = half;
            for (int64_t i = 0; i < width; i++)
                ((int8_t*)to)[i] = (int8_t)std::max(-127.0f, std::min(127.0f, std::nearbyint(x[i] * inverse)));
        }
    }

    // `num` entries of one block from `number` on as floats; `room` holds those that have to be made.
    const float* read(int64_t number, int64_t num, float* room) const {
        const int64_t slot = find(number);
        const uint8_t* from = at + slot * width * entry_bytes(kind);
        if (kind == CACHE_FLOAT32) return (const float*)from;
        for (int64_t j = 0; j < num; j++) {
            float* to = room + j * width;
            if (kind == CACHE_BFLOAT16) {
                for (int64_t i = 0; i < width; i += 8) {
                    const __m128i held = _mm_loadu_si128((const __m128i*)(from + 2 * (j * width + i)));
                    _mm256_storeu_si256((__m256i*)(to + i), _mm256_slli_epi32(_mm256_cvtepu16_epi32(held), 16));
                }
            } else {
                const __m256 scale = _mm256_set1_ps(half_to_float(scales[slot + j]));
                for (int64_t i = 0; i < width; i += 8) {
                    const __m128i held = _mm_loadl_epi64((const __m128i*)(from + j * width + i));
                    _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(held)), scale));
                }
            }
        }
        return room;
    }
};

inline __m256 dot_part(const float* q, const float* k, int64_t width) {
    __m256 acc = _mm256_setzero_ps();
    for (int64_t i = 0; i < width; i += 8)
        acc = _mm256_fmadd_ps(_mm256_loadu_ps(q + i), _mm256_loadu_ps(k + i), acc);
    return acc;
}

// scores[j] = q . keys[j] for `num` keys.
inline void score_keys(const float* q, const float* keys, int64_t num, int64_t width, float* scores) {
    int64_t j = 0;
    for (; j + 4 <= num; j += 4) {
        __m256 a[4];
        for (int i = 0; i < 4; i++) a[i] = dot_part(q, keys + (j + i) * width, width);
        const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
        _mm_storeu_ps(scores + j, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
    }
    for (; j < num; j++) {  // the same sums
        const __m256 a = dot_part(q, keys + j * width, width);
        const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, a), _mm256_hadd_ps(a, a));
        scores[j] = _mm_cvtss_f32(_mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
    }
}

// What a token sees: entries low..high, and numbers that are added to the scores of all from 0 on, or null.
struct Sight {
    int64_t low, high;
    const float* bias;

    // Those of the block of entry `low` + j, from it on.
    int64_t rest(int64_t j) const { return std::min(CHUNK - (low + j) % CHUNK, high - low - j); }
};

// Scores → weights that sum up to 1; scores have room for 7 more.
inline void normalise_scores(float* scores, int64_t num, const Sight& sight, float scale, float cap) {
    const int64_t rounded = round_up(num, 8);
    for (int64_t j = num; j < rounded; j++) scores[j] = 0;
    const __m256 factor = _mm256_set1_ps(scale);
    for (int64_t j = 0; j < rounded; j += 8) {
        __m256 s = _mm256_mul_ps(_mm256_loadu_ps(scores + j), factor);
        if (cap > 0)
            s = _mm256_mul_ps(hyperbolic_tangent(_mm256_div_ps(s, _mm256_set1_ps(cap))), _mm256_set1_ps(cap));
        _mm256_storeu_ps(scores + j, s);
    }
    if (sight.bias != nullptr)
        for (int64_t j = 0; j < num; j++) scores[j] += sight.bias[sight.low + j];
    for (int64_t j = num; j < rounded; j++) scores[j] = -INFINITY;
    __m256 top = _mm256_set1_ps(-INFINITY);
    for (int64_t j = 0; j < rounded; j += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(scores + j));
    const __m256 most = _mm256_set1_ps(max_lanes(top));
    __m256 total = _mm256_setzero_ps();
    for (int64_t j = 0; j < rounded; j += 8) {
        const __m256 e = exponential(_mm256_sub_ps(_mm256_loadu_ps(scores + j), most));
        _mm256_storeu_ps(scores + j, e);
        total = _mm256_add_ps(total, e);
    }
    const __m256 inverse = _mm256_set1_ps(1.0f / sum_lanes(total));
    for (int64_t j = 0; j < rounded; j += 8)
        _mm256_storeu_ps(scores + j, _mm256_mul_ps(_mm256_loadu_ps(scores + j), inverse));
}

inline void add_values(const float* weights, const float* values, int64_t num, int64_t width, float* out) {
    for (int64_t i = 0; i < width; i += 64) {  // up to 8 sums at a time
        const int64_t lanes = std::min<int64_t>(8, (width - i) / 8);
        __m256 acc[8];
        for (int64_t n = 0; n < lanes; n++) acc[n] = _mm256_loadu_ps(out + i + 8 * n);
        if (lanes == 8) {
            for (int64_t j = 0; j < num; j++) {
                const __m256 weight = _mm256_broadcast_ss(weights + j);
#pragma GCC unroll 8
                for (int n = 0; n < 8; n++)
                    acc[n] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(values + j * width + i + 8 * n), acc[n]);
            }
        } else {
            for (int64_t j = 0; j < num; j++) {
                const __m256 weight = _mm256_broadcast_ss(weights + j);
                for (int64_t n = 0; n < lanes; n++)
                    acc[n] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(values + j * width + i + 8 * n), acc[n]);
            }
        }
        for (int64_t n = 0; n < lanes; n++) _mm256_storeu_ps(out + i + 8 * n, acc[n]);
    }
}
