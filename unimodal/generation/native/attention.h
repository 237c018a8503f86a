// Attention of new tokens over a cache of float32, bfloat16 or 8-bit keys and values.
//
// A cache is [layers, 2, key/value heads, slots, head width]; 8-bit entries have a float16 scale for each head and token,
// [layers, 2, key/value heads, slots]. A stream's entries lie in blocks of slots, in any order and maybe shared with other
// streams. What a token sees is cut into segments from the first visible entry on, for threads to share; each segment is
// summed up in order, and then the segments are. So a stream does not depend on the blocks that it lies in, on other
// streams, nor on the number of threads.

#pragma once

#include <vector>

#include "products.h"

enum CacheKind : int64_t { CACHE_FLOAT32 = 0, CACHE_BFLOAT16 = 1, CACHE_INT8 = 2 };

constexpr int64_t CHUNK = 64;  // entries of a block, as in paged_cache.py; they are made floats together
constexpr int64_t SEGMENT = 8 * CHUNK;

inline int64_t entry_bytes(int64_t kind) { return kind == CACHE_FLOAT32 ? 4 : kind == CACHE_BFLOAT16 ? 2 : 1; }

// The entries of one head and one stream of a cache. table: the first slot of each block. Widths are multiples of 8.
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
        int64_t i = 0;
        const int64_t whole = num * width;
        if (kind == CACHE_BFLOAT16) {
            for (; i + LANES <= whole; i += LANES) store(room + i, widen_bfloat16(from + 2 * i));
            if (i < whole) _mm256_storeu_ps(room + i, widen_8_bfloat16(from + 2 * i));
            return room;
        }
        for (int64_t j = 0; j < num; j++) {
            const float scale = half_to_float(scales[slot + j]);
            for (i = 0; i + LANES <= width; i += LANES)
                store(room + j * width + i, widen_int8(from + j * width + i) * spread(scale));
            if (i < width)
                _mm256_storeu_ps(room + j * width + i,
                                 _mm256_mul_ps(widen_8_int8(from + j * width + i), _mm256_set1_ps(scale)));
        }
        return room;
    }
};

// Sums by lane of q * k.
inline __m256 dot_part(const float* q, const float* k, int64_t width) {
    Floats acc = spread(0);
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) acc = multiply_add(load(q + i), load(k + i), acc);
    if (i < width) acc = multiply_add(load_half(q + i), load_half(k + i), acc);
    return _mm256_add_ps(first_half(acc), second_half(acc));
}

// scores[j] = q . keys[j] for `num` keys.
inline void score_keys(const float* q, const float* keys, int64_t num, int64_t width, float* scores) {
    int64_t j = 0;
    for (; j + 4 <= num; j += 4) {
        __m256 a[4];
#pragma GCC unroll 4
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

    int64_t num() const { return std::max<int64_t>(0, high - low); }

    // Those of the block of entry `low` + j, from it on.
    int64_t rest(int64_t j) const { return std::min(CHUNK - (low + j) % CHUNK, high - low - j); }
};

// A segment's part of an answer: the largest score, and weighted sums with the total of the weights.
struct Partial {
    float top = -INFINITY, total = 0;
};

// Scores of a segment, which begins with entry `low` + `begin`, → weights e^(score - largest). There is room for 15 more.
inline Partial weigh_scores(float* scores, int64_t num, int64_t begin, const Sight& sight, float scale, float cap) {
    const int64_t rounded = round_up(num, LANES);
    for (int64_t j = num; j < rounded; j++) scores[j] = 0;
    for (int64_t j = 0; j < rounded; j += LANES) {
        Floats s = load(scores + j) * spread(scale);
        if (cap > 0) s = hyperbolic_tangent(s / spread(cap)) * spread(cap);
        store(scores + j, s);
    }
    if (sight.bias != nullptr)
        for (int64_t j = 0; j < num; j++) scores[j] += sight.bias[sight.low + begin + j];
    for (int64_t j = num; j < rounded; j++) scores[j] = -INFINITY;
    Floats top = spread(-INFINITY), total = spread(0);
    for (int64_t j = 0; j < rounded; j += LANES) top = greater(top, load(scores + j));
    const float most = max_lanes(top);
    if (most == -INFINITY) {  // none is seen
        std::memset(scores, 0, rounded * sizeof(float));
        return {};
    }
    for (int64_t j = 0; j < rounded; j += LANES) {
        const Floats e = exponential(load(scores + j) - spread(most));
        store(scores + j, e);
        total = total + e;
    }
    return {most, sum_lanes(total)};
}

// out [width] += weights . values, for N times 16 of the width.
template <int N>
inline void add_lanes(const float* weights, const float* values, int64_t num, int64_t width, float* out) {
    Floats even[N], odd[N];  // two sums each, since one waits for itself
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
        even[n] = load(out + LANES * n);
        odd[n] = spread(0);
    }
    int64_t j = 0;
    for (; j + 2 <= num; j += 2) {
        const Floats a = spread(weights[j]), b = spread(weights[j + 1]);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            even[n] = multiply_add(a, load(values + j * width + LANES * n), even[n]);
            odd[n] = multiply_add(b, load(values + (j + 1) * width + LANES * n), odd[n]);
        }
    }
    for (int n = 0; n < N; n++) {
        if (j < num) even[n] = multiply_add(spread(weights[j]), load(values + j * width + LANES * n), even[n]);
        store(out + LANES * n, even[n] + odd[n]);
    }
}

// out [width] += weights . values.
inline void add_values(const float* weights, const float* values, int64_t num, int64_t width, float* out) {
    constexpr int most = WIDE ? 4 : 2;  // twice so many sums fit into registers
    int64_t i = 0;
    for (; i + most * LANES <= width; i += most * LANES) add_lanes<most>(weights, values + i, num, width, out + i);
    for (; i + LANES <= width; i += LANES) add_lanes<1>(weights, values + i, num, width, out + i);
    if (i == width) return;
    __m256 last = _mm256_loadu_ps(out + i);
    for (int64_t j = 0; j < num; j++)
        last = _mm256_fmadd_ps(_mm256_set1_ps(weights[j]), _mm256_loadu_ps(values + j * width + i), last);
    _mm256_storeu_ps(out + i, last);
}

// out [width] of the sums [width] of `num` segments, and their parts.
inline void join_segments(const float* sums, int64_t stride, const Partial* parts, int64_t num, int64_t width,
                          float* out) {
    float top = -INFINITY, total = 0;
    for (int64_t s = 0; s < num; s++) top = std::max(top, parts[s].top);
    std::memset(out, 0, width * sizeof(float));
    if (top == -INFINITY) return;
    for (int64_t s = 0; s < num; s++) {
        if (parts[s].top == -INFINITY) continue;
        const float weight = max_lanes(exponential(spread(parts[s].top - top)));
        total += parts[s].total * weight;
        for (int64_t i = 0; i < width; i++) out[i] += sums[s * stride + i] * weight;
    }
    for (int64_t i = 0; i < width; i++) out[i] /= total;
}
