// Products x @ W.T of a few rows of activations with packed weights, by AVX2 or AVX-512.
//
// A packed weight is made of blocks of 16 outputs, which lie side by side, so that an input is broadcast to all of them
// and no sum crosses a register. For each block (`packing.py` writes them):
//   float32   [inputs, 16]
//   bfloat16  [inputs / 2, 16] pairs: an input in the lower half, the next one in the upper
//   int8      for each group of 32 inputs: [8, 16, 4] integers, then the float16 scale of each of the 16 outputs
//   int4      for each group of 32 inputs: [4, 16, 4] bytes, inputs 0..15 in the lower nibbles (offset 8), 16..31 in the
//             upper ones, then the float16 scales
// For the last two, activations become 8-bit integers with a scale for each 32 of a row, as llama.cpp does it (q8_0).
//
// The sum of a row and an output is taken in one order whatever other rows are computed, so a row does not depend on its
// batch, to the last bit.

#pragma once

#include "vector.h"

enum Kind : int64_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

constexpr int64_t BLOCK = LANES, GROUP = 32;

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
        case BFLOAT16: return round_up(cols, 2) * 32;
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

// NB blocks of 16 outputs for MT rows from `row` on. Every sum is taken from the first input to the last.
template <int64_t KIND, int NB, int MT>
inline void multiply_floats(const uint8_t* w, int64_t cols, const Inputs& in, int64_t row, Floats (&acc)[NB][MT]) {
    const int64_t bytes = block_bytes(KIND, cols);
    const float* x[MT];
    for (int m = 0; m < MT; m++) x[m] = in.values + (row + m) * in.stride;
    for (int b = 0; b < NB; b++)
        for (int m = 0; m < MT; m++) acc[b][m] = spread(0);
    if (KIND == FLOAT32) {
        for (int64_t k = 0; k < cols; k++)
#pragma GCC unroll 4
            for (int b = 0; b < NB; b++) {
                const Floats weights = load((const float*)(w + b * bytes) + k * BLOCK);
#pragma GCC unroll 8
                for (int m = 0; m < MT; m++) acc[b][m] = multiply_add(weights, spread(x[m][k]), acc[b][m]);
            }
        return;
    }
    for (int64_t k = 0; k + 1 < cols; k += 2)
#pragma GCC unroll 4
        for (int b = 0; b < NB; b++) {
            Floats lower, upper;
            split_pairs(w + b * bytes + k * 2 * BLOCK, lower, upper);
#pragma GCC unroll 8
            for (int m = 0; m < MT; m++) {
                acc[b][m] = multiply_add(lower, spread(x[m][k]), acc[b][m]);
                acc[b][m] = multiply_add(upper, spread(x[m][k + 1]), acc[b][m]);
            }
        }
    if (cols % 2 == 0) return;
    for (int b = 0; b < NB; b++) {
        Floats lower, upper;
        split_pairs(w + b * bytes + (cols - 1) * 2 * BLOCK, lower, upper);
        for (int m = 0; m < MT; m++) acc[b][m] = multiply_add(lower, spread(x[m][cols - 1]), acc[b][m]);
    }
}

inline int32_t read_four(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return four;
}

#if WIDE

// The sums of a group of 32 inputs for 16 outputs and MT rows, as floats.
template <int64_t KIND, int MT>
inline void sum_group(const uint8_t* w, const int8_t* const* x, const int32_t* const* sums, int64_t g,
                      Floats (&out)[MT]) {
    // The instruction multiplies unsigned by signed integers. Weights of 8 bits become unsigned with 128 added to each,
    // those of 4 bits hold 8 more than they are; what that adds to a sum is known from the inputs alone.
    constexpr int chains = MT == 1 ? 4 : 1;  // of one row, since a sum waits for itself; whole numbers have no rounding
    __m512i sum[MT][chains];
#pragma GCC unroll 8
    for (int m = 0; m < MT; m++) {
        sum[m][0] = _mm512_set1_epi32((KIND == INT8 ? -16 : -1) * sums[m][g]);
        for (int c = 1; c < chains; c++) sum[m][c] = _mm512_setzero_si512();
    }
    const auto add = [&](int m, int c, __m512i weights, const int8_t* four) {
        __m512i& to = sum[m][c % chains];
        to = _mm512_dpbusd_epi32(to, weights, _mm512_set1_epi32(read_four(four)));
    };
    if (KIND == INT8) {
#pragma GCC unroll 8
        for (int q = 0; q < 8; q++) {
            const __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(w + 64 * q), _mm512_set1_epi8(-128));
#pragma GCC unroll 8
            for (int m = 0; m < MT; m++) add(m, q, weights, x[m] + g * GROUP + 4 * q);
        }
    } else {
        const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            const __m512i both = _mm512_loadu_si512(w + 64 * q);
            const __m512i lower = _mm512_and_si512(both, nibble);
            const __m512i upper = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
#pragma GCC unroll 8
            for (int m = 0; m < MT; m++) {
                add(m, 2 * q, lower, x[m] + g * GROUP + 4 * q);
                add(m, 2 * q + 1, upper, x[m] + g * GROUP + 16 + 4 * q);
            }
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MT; m++) {
        __m512i total = sum[m][0];
        for (int c = 1; c < chains; c++) total = _mm512_add_epi32(total, sum[m][c]);
        out[m].v = _mm512_cvtepi32_ps(total);
    }
}

#else

// The sums of a group of 32 inputs for 16 outputs and MT rows, as floats.
template <int64_t KIND, int MT>
inline void sum_group(const uint8_t* w, const int8_t* const* x, const int32_t* const* sums, int64_t g,
                      Floats (&out)[MT]) {
    const __m256i ones = _mm256_set1_epi16(1), nibble = _mm256_set1_epi8(15);
    __m256i sum[MT][2];
    for (int m = 0; m < MT; m++) sum[m][0] = sum[m][1] = _mm256_setzero_si256();
    if (KIND == INT8) {
#pragma GCC unroll 8
        for (int q = 0; q < 8; q++)
            for (int half = 0; half < 2; half++) {
                const __m256i weights = _mm256_loadu_si256((const __m256i*)(w + 64 * q + 32 * half));
                const __m256i sizes = _mm256_abs_epi8(weights);
#pragma GCC unroll 2
                for (int m = 0; m < MT; m++) {
                    // |w| * (x with the sign of w): two products of at most 127 * 127 fit 16 bits
                    const __m256i four = _mm256_set1_epi32(read_four(x[m] + g * GROUP + 4 * q));
                    const __m256i pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(four, weights));
                    sum[m][half] = _mm256_add_epi32(sum[m][half], _mm256_madd_epi16(pairs, ones));
                }
            }
    } else {
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++)
            for (int half = 0; half < 2; half++) {
                const __m256i both = _mm256_loadu_si256((const __m256i*)(w + 64 * q + 32 * half));
                const __m256i lower = _mm256_and_si256(both, nibble);
                const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
                for (int m = 0; m < MT; m++) {  // 16 products of at most 15 * 127 fit 16 bits
                    const int8_t* at = x[m] + g * GROUP + 4 * q;
                    __m256i& s = sum[m][half];
                    s = _mm256_add_epi16(s, _mm256_maddubs_epi16(lower, _mm256_set1_epi32(read_four(at))));
                    s = _mm256_add_epi16(s, _mm256_maddubs_epi16(upper, _mm256_set1_epi32(read_four(at + 16))));
                }
            }
        for (int m = 0; m < MT; m++)
            for (int half = 0; half < 2; half++)  // 4 bits hold 8 more than the weights are
                sum[m][half] = _mm256_sub_epi32(_mm256_madd_epi16(sum[m][half], ones), _mm256_set1_epi32(sums[m][g]));
    }
    for (int m = 0; m < MT; m++) out[m] = {_mm256_cvtepi32_ps(sum[m][0]), _mm256_cvtepi32_ps(sum[m][1])};
}

#endif

template <int64_t KIND, int MT>
inline void multiply_integers(const uint8_t* w, const Inputs& in, int64_t row, Floats (&acc)[1][MT]) {
    constexpr int64_t integers = KIND == INT8 ? 512 : 256;  // bytes of a group, behind which its scales lie
    const int8_t* x[MT];
    const int32_t* sums[MT];
    const float* scales[MT];
    for (int m = 0; m < MT; m++) {
        x[m] = in.integers + (row + m) * in.groups * GROUP;
        sums[m] = in.sums + (row + m) * in.groups;
        scales[m] = in.scales + (row + m) * in.groups;
        acc[0][m] = spread(0);
    }
    for (int64_t g = 0; g < in.groups; g++, w += integers + 32) {
        Floats found[MT];
        sum_group<KIND, MT>(w, x, sums, g, found);
        const Floats own = widen_half(w + integers);
#pragma GCC unroll 8
        for (int m = 0; m < MT; m++) acc[0][m] = multiply_add(found[m], own * spread(scales[m][g]), acc[0][m]);
    }
}

// NB blocks of MT rows, each given to `keep(row, block, 16 outputs)`.
template <int64_t KIND, int NB, int MT, class Keep>
inline void multiply_tile(const Product& p, const Inputs& in, int64_t row, int64_t block, const Keep& keep) {
    Floats out[NB][MT];
    const uint8_t* w = p.weight + block * block_bytes(KIND, p.cols);
    if constexpr (KIND == INT8 || KIND == INT4)
        multiply_integers<KIND, MT>(w, in, row, out);
    else
        multiply_floats<KIND, NB, MT>(w, p.cols, in, row, out);
    for (int b = 0; b < NB; b++)
        for (int m = 0; m < MT; m++) {
            if (p.bias != nullptr) out[b][m] = out[b][m] + load(p.bias + (block + b) * BLOCK);
            keep(row + m, block + b, out[b][m]);
        }
}

// The rows from `row` to `end`, MT at a time, then half as many.
template <int64_t KIND, int NB, int MT, class Keep>
inline void multiply_rows(const Product& p, const Inputs& in, int64_t row, int64_t end, int64_t block,
                          const Keep& keep) {
    for (; row + MT <= end; row += MT) multiply_tile<KIND, NB, MT>(p, in, row, block, keep);
    if constexpr (MT > 1) multiply_rows<KIND, NB, MT / 2>(p, in, row, end, block, keep);
}

template <int64_t KIND, int NB, int MT, class Keep>
inline void multiply_blocks(const Product& p, const Inputs& in, int64_t begin, int64_t end, int64_t first, int64_t last,
                            const Keep& keep) {
    int64_t block = first;
    for (; block + NB <= last; block += NB) multiply_rows<KIND, NB, MT>(p, in, begin, end, block, keep);
    for (; block < last; block++) multiply_rows<KIND, 1, MT>(p, in, begin, end, block, keep);
}

template <int64_t KIND, class Keep>
inline void multiply_kind(const Product& p, const Inputs& in, int64_t rows, int64_t first, int64_t last,
                          const Keep& keep) {
    // Several blocks at a time for one row, since one sum waits for itself; else several rows, which read weights once.
    constexpr bool whole = KIND == INT8 || KIND == INT4;
    constexpr int rows_at_once = WIDE ? 8 : whole ? 2 : 4, blocks_of_rows = whole || !WIDE ? 1 : 2;
    if (rows == 1) return multiply_blocks<KIND, whole ? 1 : 4, 1>(p, in, 0, 1, first, last, keep);
    for (int64_t begin = 0; begin < rows; begin += 64)
        multiply_blocks<KIND, blocks_of_rows, rows_at_once>(p, in, begin, std::min(rows, begin + 64), first, last, keep);
}

// Outputs of the blocks first..last for `rows` rows of inputs.
template <class Keep>
inline void multiply(int64_t kind, const Product& p, const Inputs& in, int64_t rows, int64_t first, int64_t last,
                     const Keep& keep) {
    switch (kind) {
        case FLOAT32: return multiply_kind<FLOAT32>(p, in, rows, first, last, keep);
        case BFLOAT16: return multiply_kind<BFLOAT16>(p, in, rows, first, last, keep);
        case INT8: return multiply_kind<INT8>(p, in, rows, first, last, keep);
        default: return multiply_kind<INT4>(p, in, rows, first, last, keep);
    }
}
