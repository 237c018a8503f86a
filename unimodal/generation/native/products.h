// Products x @ W.T of a few rows of activations with packed weights, by AVX2.
//
// A packed weight is made of blocks of 16 outputs, which lie side by side, so that an input is broadcast to all of them
// and no sum crosses a register. For each block (`packing.py` writes them):
//   float32   [inputs, 16]
//   bfloat16  [inputs, 8] pairs: output j in the lower half, output j + 8 in the upper
//   int8      for each group of 32 inputs: [8, 16, 4] integers, then the float16 scale of each of the 16 outputs
//   int4      for each group of 32 inputs: [4, 16, 4] bytes, inputs 0..15 in the lower nibbles (offset 8), 16..31 in the
//             upper ones, then the float16 scales
// For the last two, activations become 8-bit integers with a scale for each 32 of a row, as llama.cpp does it (q8_0).
//
// The sum of a row and an output is taken in one order whatever other rows are computed, so a row does not depend on its
// batch, to the last bit.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

enum Kind : int64_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

constexpr int64_t BLOCK = 16, GROUP = 32;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Product {
    const uint8_t* weight;
    const float* bias;  // [rows rounded up to 16], or null
    int64_t rows, cols;

    int64_t blocks() const { return (rows + BLOCK - 1) / BLOCK; }
};

inline bool is_integer(int64_t kind) { return kind == INT8 || kind == INT4; }

inline int64_t block_bytes(int64_t kind, int64_t cols) {
    switch (kind) {
        case FLOAT32: return cols * 64;
        case BFLOAT16: return cols * 32;
        case INT8: return round_up(cols, GROUP) / GROUP * 544;
        default: return round_up(cols, GROUP) / GROUP * 288;
    }
}

// Activations as the products read them: floats as they are, or 8-bit integers with what belongs to their groups.
struct Inputs {
    const float* values = nullptr;
    int64_t stride = 0;
    int8_t* integers = nullptr;  // [rows, groups * 32]
    float* scales = nullptr;     // [rows, groups]
    int32_t* sums = nullptr;     // [rows, groups], 8 times the sum of a group's integers
    int64_t groups = 0;
};

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

inline __m256 absolute(__m256 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }

// 8-bit integers of 32 floats, of which the first `num` are real; returns their scale.
inline float quantise_group(const float* x, int64_t num, int8_t* out, int32_t* sum) {
    alignas(32) float held[GROUP] = {0};
    if (num < GROUP) {
        std::memcpy(held, x, num * sizeof(float));
        x = held;
    }
    __m256 v[4], top = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) top = _mm256_max_ps(top, absolute(v[i] = _mm256_loadu_ps(x + 8 * i)));
    const float most = max_lanes(top);
    const __m256 inverse = _mm256_set1_ps(most > 0 ? 127.0f / most : 0.0f);
    __m256i q[4], total = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
        total = _mm256_add_epi32(total, q[i]);
    }
    const __m256i ab = _mm256_packs_epi32(q[0], q[1]), cd = _mm256_packs_epi32(q[2], q[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i*)out, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    *sum = 8 * (_mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 1));
    return most / 127.0f;
}

inline void quantise_row(const float* x, int64_t cols, const Inputs& to, int64_t row) {
    for (int64_t g = 0; g < to.groups; g++)
        to.scales[row * to.groups + g] =
            quantise_group(x + g * GROUP, std::min(GROUP, cols - g * GROUP),
                           to.integers + (row * to.groups + g) * GROUP, to.sums + row * to.groups + g);
}

template <int64_t KIND>
inline void load_weights(const uint8_t* w, __m256& low, __m256& high) {
    if (KIND == FLOAT32) {
        low = _mm256_loadu_ps((const float*)w);
        high = _mm256_loadu_ps((const float*)w + 8);
    } else {
        const __m256i pairs = _mm256_loadu_si256((const __m256i*)w);
        low = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
        high = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xFFFF0000)));
    }
}

// NB blocks of 16 outputs for MT rows from `row` on.
template <int64_t KIND, int NB, int MT>
inline void multiply_floats(const uint8_t* w, int64_t cols, const Inputs& in, int64_t row, __m256 (&out)[NB][MT][2]) {
    constexpr int64_t step = KIND == FLOAT32 ? 64 : 32;
    const float* x[MT];
    for (int m = 0; m < MT; m++) x[m] = in.values + (row + m) * in.stride;
    __m256 acc[NB][MT][2];
    for (int b = 0; b < NB; b++)
        for (int m = 0; m < MT; m++) acc[b][m][0] = acc[b][m][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < cols; k++) {
        __m256 value[MT];
        for (int m = 0; m < MT; m++) value[m] = _mm256_broadcast_ss(x[m] + k);
        for (int b = 0; b < NB; b++) {
            __m256 low, high;
            load_weights<KIND>(w + (b * cols + k) * step, low, high);
            for (int m = 0; m < MT; m++) {
                acc[b][m][0] = _mm256_fmadd_ps(low, value[m], acc[b][m][0]);
                acc[b][m][1] = _mm256_fmadd_ps(high, value[m], acc[b][m][1]);
            }
        }
    }
    for (int b = 0; b < NB; b++)
        for (int m = 0; m < MT; m++) {
            out[b][m][0] = acc[b][m][0];
            out[b][m][1] = acc[b][m][1];
        }
}

inline __m256i broadcast_four(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

template <int64_t KIND, int MT>
inline void multiply_integers(const uint8_t* w, const Inputs& in, int64_t row, __m256 (&out)[1][MT][2]) {
    const __m256i ones = _mm256_set1_epi16(1), nibble = _mm256_set1_epi8(15);
    __m256 acc[MT][2];
    for (int m = 0; m < MT; m++) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
    const int8_t* x[MT];
    for (int m = 0; m < MT; m++) x[m] = in.integers + (row + m) * in.groups * GROUP;
    for (int64_t g = 0; g < in.groups; g++) {
        __m256i sum[MT][2];
        for (int m = 0; m < MT; m++) sum[m][0] = sum[m][1] = _mm256_setzero_si256();
        if (KIND == INT8) {
#pragma GCC unroll 8
            for (int q = 0; q < 8; q++) {
                const __m256i w0 = _mm256_loadu_si256((const __m256i*)w);
                const __m256i w1 = _mm256_loadu_si256((const __m256i*)(w + 32));
                const __m256i a0 = _mm256_abs_epi8(w0), a1 = _mm256_abs_epi8(w1);
                w += 64;
                for (int m = 0; m < MT; m++) {
                    // |w| * (x with the sign of w): two products of at most 127 * 127 fit 16 bits
                    const __m256i v = broadcast_four(x[m] + g * GROUP + 4 * q);
                    const __m256i p0 = _mm256_maddubs_epi16(a0, _mm256_sign_epi8(v, w0));
                    const __m256i p1 = _mm256_maddubs_epi16(a1, _mm256_sign_epi8(v, w1));
                    sum[m][0] = _mm256_add_epi32(sum[m][0], _mm256_madd_epi16(p0, ones));
                    sum[m][1] = _mm256_add_epi32(sum[m][1], _mm256_madd_epi16(p1, ones));
                }
            }
        } else {
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) {
                const __m256i w0 = _mm256_loadu_si256((const __m256i*)w);
                const __m256i w1 = _mm256_loadu_si256((const __m256i*)(w + 32));
                const __m256i l0 = _mm256_and_si256(w0, nibble), l1 = _mm256_and_si256(w1, nibble);
                const __m256i h0 = _mm256_and_si256(_mm256_srli_epi16(w0, 4), nibble);
                const __m256i h1 = _mm256_and_si256(_mm256_srli_epi16(w1, 4), nibble);
                w += 64;
                for (int m = 0; m < MT; m++) {  // 16 products of at most 15 * 127 fit 16 bits
                    const __m256i lower = broadcast_four(x[m] + g * GROUP + 4 * q);
                    const __m256i upper = broadcast_four(x[m] + g * GROUP + 16 + 4 * q);
                    sum[m][0] = _mm256_add_epi16(sum[m][0], _mm256_maddubs_epi16(l0, lower));
                    sum[m][1] = _mm256_add_epi16(sum[m][1], _mm256_maddubs_epi16(l1, lower));
                    sum[m][0] = _mm256_add_epi16(sum[m][0], _mm256_maddubs_epi16(h0, upper));
                    sum[m][1] = _mm256_add_epi16(sum[m][1], _mm256_maddubs_epi16(h1, upper));
                }
            }
            for (int m = 0; m < MT; m++) {
                const __m256i offset = _mm256_set1_epi32(in.sums[(row + m) * in.groups + g]);
                for (int half = 0; half < 2; half++)
                    sum[m][half] = _mm256_sub_epi32(_mm256_madd_epi16(sum[m][half], ones), offset);
            }
        }
        const __m256 s0 = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)w));
        const __m256 s1 = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(w + 16)));
        w += 32;
        for (int m = 0; m < MT; m++) {
            const __m256 scale = _mm256_broadcast_ss(in.scales + (row + m) * in.groups + g);
            acc[m][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m][0]), _mm256_mul_ps(s0, scale), acc[m][0]);
            acc[m][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m][1]), _mm256_mul_ps(s1, scale), acc[m][1]);
        }
    }
    for (int m = 0; m < MT; m++) {
        out[0][m][0] = acc[m][0];
        out[0][m][1] = acc[m][1];
    }
}

// NB blocks of MT rows, each given to `store(row, block, first 8 outputs, last 8 outputs)`.
template <int64_t KIND, int NB, int MT, class Store>
inline void multiply_tile(const Product& p, const Inputs& in, int64_t row, int64_t block, const Store& store) {
    __m256 out[NB][MT][2];
    const uint8_t* w = p.weight + block * block_bytes(KIND, p.cols);
    if constexpr (KIND == INT8 || KIND == INT4)
        multiply_integers<KIND, MT>(w, in, row, out);
    else
        multiply_floats<KIND, NB, MT>(w, p.cols, in, row, out);
    for (int b = 0; b < NB; b++)
        for (int m = 0; m < MT; m++) {
            if (p.bias != nullptr)
                for (int half = 0; half < 2; half++)
                    out[b][m][half] =
                        _mm256_add_ps(out[b][m][half], _mm256_loadu_ps(p.bias + (block + b) * BLOCK + 8 * half));
            store(row + m, block + b, out[b][m][0], out[b][m][1]);
        }
}

template <int64_t KIND, class Store>
inline void multiply_kind(const Product& p, const Inputs& in, int64_t rows, int64_t first, int64_t last,
                          const Store& store) {
    // Several blocks at a time for one row, since one sum of floats waits for itself; several rows for one block.
    constexpr bool whole = KIND == INT8 || KIND == INT4;
    constexpr int most = whole ? 2 : 4;
    int64_t block = first;
    if (!whole && rows == 1)
        for (; block + 4 <= last; block += 4) multiply_tile<KIND, whole ? 1 : 4, 1>(p, in, 0, block, store);
    if (!whole && rows == 2)
        for (; block + 2 <= last; block += 2) multiply_tile<KIND, whole ? 1 : 2, 2>(p, in, 0, block, store);
    for (int64_t begin = 0; begin < rows; begin += 64) {
        const int64_t end = std::min(rows, begin + 64);
        for (int64_t b = block; b < last; b++) {
            int64_t m = begin;
            for (; m + most <= end; m += most) multiply_tile<KIND, 1, most>(p, in, m, b, store);
            if (!whole && m + 2 <= end) {
                multiply_tile<KIND, 1, 2>(p, in, m, b, store);
                m += 2;
            }
            for (; m < end; m++) multiply_tile<KIND, 1, 1>(p, in, m, b, store);
        }
    }
}

// Outputs of the blocks first..last for `rows` rows of inputs.
template <class Store>
inline void multiply(int64_t kind, const Product& p, const Inputs& in, int64_t rows, int64_t first, int64_t last,
                     const Store& store) {
    switch (kind) {
        case FLOAT32: return multiply_kind<FLOAT32>(p, in, rows, first, last, store);
        case BFLOAT16: return multiply_kind<BFLOAT16>(p, in, rows, first, last, store);
        case INT8: return multiply_kind<INT8>(p, in, rows, first, last, store);
        default: return multiply_kind<INT4>(p, in, rows, first, last, store);
    }
}
