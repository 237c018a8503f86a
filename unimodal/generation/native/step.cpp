// All layers of a decoder for a few new tokens, in one call: what a step does, without a framework between its parts.
//
// `native_layers.py` fills in these structures (they must agree with its ctypes classes), `build.py` compiles this file.

#include <omp.h>

#include <atomic>

#include "teams.h"

enum Activation : int64_t { SILU = 0, GELU_TANH = 1, GELU = 2 };

struct Layer {
    Product qkv, out, gate_up, down;  // gate and up in turn, 8 outputs of each
    const float *attention_norm, *query_norm, *key_norm, *attention_end_norm, *mlp_norm, *mlp_end_norm;  // or null
    float scaling, cap, residual, unused;
    int64_t window, rotary;  // 0: sees all; -1: no rotation, else the number of the table
    int64_t home, number;    // its cache, and its number there
};

struct Model {
    const Layer* layers;
    int64_t num_layers, kind, width, heads, kv_heads, head_width, inner, rotary_width, whole_norms, activation;
    const float* last_norm;  // or null: leave it out
    float eps, unused;
};

// A cache, and what the new tokens write and see there. Tokens of a stream are numbered from the first one held.
struct StepCache {
    uint8_t* cache;
    uint16_t* scales;
    int64_t slots;         // of the cache
    const int64_t* table;  // [streams, blocks], the first slot of each block
    int64_t blocks;
    const int64_t *slot, *low, *high;  // of each new token: its number, -1 of padding; and those that it sees
    const float* bias;                 // [., tokens held], or null
    const int64_t* bias_row;           // of each token
    int64_t bias_stride;
};

struct Step {
    float* x;  // [streams * new, width], in and out
    int64_t streams, num_new;
    const float *cos[2], *sin[2];  // [positions, rotary_width / 2] of each table
    const int64_t* position;       // of each token
    StepCache held[2];
    int64_t cache_kind, threads;
};

static void normalise(const float* x, const float* weight, int64_t width, float eps, float* out) {
    __m256 squares = _mm256_setzero_ps();
    int64_t i = 0;
    float rest = 0;
    for (; i + 8 <= width; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    for (; i < width; i++) rest += x[i] * x[i];
    const float scale = 1.0f / std::sqrt((sum_lanes(squares) + rest) / (float)width + eps);
    for (i = 0; i < width; i++) out[i] = x[i] * scale * weight[i];
}

static void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

static __m256 activate(int64_t kind, __m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f), half = _mm256_set1_ps(0.5f);
    if (kind == SILU)
        return _mm256_div_ps(x, _mm256_add_ps(one, exponential(_mm256_sub_ps(_mm256_setzero_ps(), x))));
    if (kind == GELU_TANH) {
        const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
        const __m256 inner = _mm256_fmadd_ps(cube, _mm256_set1_ps(0.044715f), x);
        const __m256 t = hyperbolic_tangent(_mm256_mul_ps(inner, _mm256_set1_ps(0.7978845608028654f)));
        return _mm256_mul_ps(_mm256_mul_ps(half, x), _mm256_add_ps(one, t));
    }
    alignas(32) float held[8];
    _mm256_store_ps(held, x);
    for (float& v : held) v = 0.5f * v * (1.0f + std::erf(v * 0.70710678118654752f));
    return _mm256_load_ps(held);
}

namespace {

// The buffers that the threads of a step share.
struct Rooms {
    std::vector<float> normed, qkv, attended, added, inner;
    std::vector<int8_t> integers;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    std::vector<std::atomic<int64_t>> counters;

    explicit Rooms(size_t phases) : counters(phases) {}
};

class Run {
  public:
    Run(const Model& model, const Step& step)
        : m(model), s(step), tokens(step.streams * step.num_new), rooms(model.num_layers * 6) {
        qkv_stride = round_up((m.heads + 2 * m.kv_heads) * m.head_width, BLOCK);
        added_stride = round_up(m.width, BLOCK);
        inner_stride = round_up(m.inner, GROUP);
        rooms.normed.resize(tokens * m.width);
        rooms.qkv.resize(tokens * qkv_stride);
        rooms.attended.resize(tokens * m.heads * m.head_width);
        rooms.added.resize(tokens * added_stride);
        rooms.inner.resize(tokens * inner_stride);
        singles = make_teams(s.held[0].table, s.held[0].blocks, s.held[0].high, s.streams, s.num_new, 1);
        const int64_t most = std::max<int64_t>(1, tokens * m.kv_heads / (4 * s.threads));  // no thread without work
        together = make_teams(s.held[0].table, s.held[0].blocks, s.held[0].high, s.streams, s.num_new, most);
        if (is_integer(m.kind)) {
            const int64_t groups = std::max({round_up(m.width, GROUP), round_up(m.heads * m.head_width, GROUP),
                                             inner_stride}) / GROUP;
            rooms.integers.resize(tokens * groups * GROUP);
            rooms.scales.resize(tokens * groups);
            rooms.sums.resize(tokens * groups);
        }
    }

  private:
    const Model& m;
    const Step& s;
    const int64_t tokens;
    Rooms rooms;
    int64_t qkv_stride, added_stride, inner_stride;
    std::vector<Team> singles, together;  // of layers with a window or a mask, and of all others, whose cache is the first

    static void wait() {
#pragma omp barrier
    }

    // Adds outputs to x, or keeps them for the norm that comes first.
    auto adder(const Layer& layer, const float* norm) {
        return [this, &layer, norm](int64_t row, int64_t block, __m256 low, __m256 high) {
            if (norm != nullptr) {
                float* to = rooms.added.data() + row * added_stride + block * BLOCK;
                _mm256_storeu_ps(to, low);
                _mm256_storeu_ps(to + 8, high);
                return;
            }
            alignas(32) float held[BLOCK];
            const __m256 factor = _mm256_set1_ps(layer.residual);
            float* to = s.x + row * m.width + block * BLOCK;
            const int64_t num = std::min(BLOCK, m.width - block * BLOCK);
            std::memcpy(held, to, num * sizeof(float));
            _mm256_store_ps(held, _mm256_fmadd_ps(low, factor, _mm256_load_ps(held)));
            _mm256_store_ps(held + 8, _mm256_fmadd_ps(high, factor, _mm256_load_ps(held + 8)));
            std::memcpy(to, held, num * sizeof(float));
        };
    }

    // Items of a phase, each to the thread that comes first; then all wait for each other.
    template <class Work>
    void share(int64_t phase, int64_t num, const Work& work) {
        for (int64_t item; (item = rooms.counters[phase]++) < num;) work(item);
        wait();
    }

    template <class Store>
    void share_blocks(int64_t phase, const Product& product, const Inputs& in, const Store& store) {
        const int64_t blocks = product.blocks();
        const int64_t some = std::max<int64_t>(4, round_up(blocks / (8 * s.threads), 4));
        share(phase, (blocks + some - 1) / some, [&](int64_t item) {
            multiply(m.kind, product, in, tokens, item * some, std::min(blocks, (item + 1) * some), store);
        });
    }

    template <class Work>
    void share_rows(const Work& work) {
        const int64_t thread = omp_get_thread_num(), num = omp_get_num_threads();
        for (int64_t row = tokens * thread / num; row < tokens * (thread + 1) / num; row++) work(row);
        wait();
    }

    Inputs point_at(const float* values, int64_t stride, int64_t cols) {
        return {values, stride, rooms.integers.data(), rooms.scales.data(), rooms.sums.data(),
                round_up(cols, GROUP) / GROUP};
    }

    // `values` as the products read them.
    Inputs prepare(const float* values, int64_t stride, int64_t cols) {
        const Inputs in = point_at(values, stride, cols);
        if (is_integer(m.kind)) share_rows([&](int64_t row) { quantise_row(values + row * stride, cols, in, row); });
        return in;
    }

    void add_end(const float* norm, int64_t row) {
        if (norm == nullptr) return;
        float* added = rooms.added.data() + row * added_stride;
        normalise(added, norm, m.width, m.eps, added);
        for (int64_t i = 0; i < m.width; i++) s.x[row * m.width + i] += added[i];
    }

    // Adds what waits for its norm to x, and prepares x behind the next norm.
    Inputs add_and_prepare(const float* end_norm, const float* norm) {
        const Inputs in = point_at(rooms.normed.data(), m.width, m.width);
        share_rows([&](int64_t row) {
            add_end(end_norm, row);
            float *x = s.x + row * m.width, *to = rooms.normed.data() + row * m.width;
            if (norm != nullptr)
                normalise(x, norm, m.width, m.eps, to);
            else
                std::memcpy(to, x, m.width * sizeof(float));
            if (is_integer(m.kind)) quantise_row(to, m.width, in, row);
        });
        return in;
    }

    void finish() {
        const float* end_norm = m.num_layers ? m.layers[m.num_layers - 1].mlp_end_norm : nullptr;
        share_rows([&](int64_t row) {
            add_end(end_norm, row);
            float* x = s.x + row * m.width;
            if (m.last_norm != nullptr) normalise(x, m.last_norm, m.width, m.eps, x);
        });
    }

    Entries entries(const Layer& layer, int64_t which, int64_t stream, int64_t head) const {
        const StepCache& held = s.held[layer.home];
        const int64_t at = ((layer.number * 2 + which) * m.kv_heads + head) * held.slots;
        return {held.cache + at * m.head_width * entry_bytes(s.cache_kind), held.scales + at,
                held.table + stream * held.blocks, s.cache_kind, m.head_width};
    }

    // Norm and rotation of `num` heads of a token, which lie one after the other from `head` on.
    void turn_heads(const Layer& layer, const float* norm, int64_t token, int64_t head, int64_t num, int64_t first,
                    int64_t all, float* to) {
        const float* from = rooms.qkv.data() + token * qkv_stride + head * m.head_width;
        const int64_t width = m.head_width, half = m.rotary_width / 2;
        std::memcpy(to, from, num * width * sizeof(float));
        if (norm != nullptr && m.whole_norms) {
            std::vector<float> whole(all * width);
            normalise(rooms.qkv.data() + token * qkv_stride + first * width, norm, all * width, m.eps, whole.data());
            std::memcpy(to, whole.data() + (head - first) * width, num * width * sizeof(float));
        }
        for (int64_t h = 0; h < num; h++) {
            if (norm != nullptr && !m.whole_norms) normalise(to + h * width, norm, width, m.eps, to + h * width);
            if (layer.rotary >= 0) {
                const int64_t at = s.position[token] * half;
                rotate(to + h * width, s.cos[layer.rotary] + at, s.sin[layer.rotary] + at, half);
            }
        }
    }

    void write_keys(int64_t number, int64_t item) {
        const int64_t stream = item / m.kv_heads, head = item % m.kv_heads;
        const Layer& layer = m.layers[number];
        const Entries keys = entries(layer, 0, stream, head), values = entries(layer, 1, stream, head);
        const int64_t* slot = s.held[layer.home].slot;
        std::vector<float> key(m.head_width);
        for (int64_t token = stream * s.num_new; token < (stream + 1) * s.num_new; token++) {
            if (slot[token] < 0) continue;
            turn_heads(layer, layer.key_norm, token, m.heads + head, 1, m.heads, m.kv_heads, key.data());
            keys.write(slot[token], key.data());
            const int64_t at = (m.heads + m.kv_heads + head) * m.head_width;
            values.write(slot[token], rooms.qkv.data() + token * qkv_stride + at);
        }
    }

    void attend_all(int64_t phase, int64_t number) {
        const Layer& layer = m.layers[number];
        const StepCache& held = s.held[layer.home];
        const int64_t group = m.heads / m.kv_heads;
        // heads that share keys together, unless that leaves threads without work
        const int64_t heads = tokens * m.kv_heads >= 4 * s.threads || s.threads == 1 ? group : 1;
        const std::vector<Team>& teams = layer.window > 0 || held.bias != nullptr ? singles : together;
        const int64_t num = (int64_t)teams.size();
        std::vector<float> room, query(MOST_TEAM * heads * m.head_width);
        std::vector<Member> members;
        share(phase, num * (m.heads / heads), [&](int64_t item) {
            const Team& team = teams[num - 1 - item % num];  // late tokens see most
            const int64_t head = item / num * heads;
            members.clear();
            for (int64_t token : team.tokens) {
                float* q = query.data() + members.size() * heads * m.head_width;
                turn_heads(layer, layer.query_norm, token, head, heads, 0, m.heads, q);
                Sight sight{held.low[token], held.high[token], nullptr};
                if (held.bias != nullptr)
                    sight.bias = held.bias + held.bias_row[token] * held.bias_stride;
                else if (layer.window > 0)
                    sight.low = std::max(sight.low, sight.high - layer.window);
                const int64_t stream = token / s.num_new;
                members.push_back({q, entries(layer, 0, stream, head / group), entries(layer, 1, stream, head / group),
                                   sight, rooms.attended.data() + (token * m.heads + head) * m.head_width});
            }
            attend(members, heads, team.common, layer.scaling, layer.cap, room);
        });
    }

  public:
    void work() {
        for (int64_t number = 0; number < m.num_layers; number++) {
            const Layer& layer = m.layers[number];
            const Layer* before = number ? &m.layers[number - 1] : nullptr;
            Inputs in = add_and_prepare(before ? before->mlp_end_norm : nullptr, layer.attention_norm);
            const int64_t first = 6 * number;
            share_blocks(first, layer.qkv, in, [&](int64_t row, int64_t block, __m256 low, __m256 high) {
                float* to = rooms.qkv.data() + row * qkv_stride + block * BLOCK;
                _mm256_storeu_ps(to, low);
                _mm256_storeu_ps(to + 8, high);
            });
            share(first + 1, s.streams * m.kv_heads, [&](int64_t item) { write_keys(number, item); });
            attend_all(first + 2, number);
            in = prepare(rooms.attended.data(), m.heads * m.head_width, m.heads * m.head_width);
            share_blocks(first + 3, layer.out, in, adder(layer, layer.attention_end_norm));
            in = add_and_prepare(layer.attention_end_norm, layer.mlp_norm);
            share_blocks(first + 4, layer.gate_up, in, [&](int64_t row, int64_t block, __m256 gate, __m256 up) {
                float* to = rooms.inner.data() + row * inner_stride + block * 8;
                _mm256_storeu_ps(to, _mm256_mul_ps(activate(m.activation, gate), up));
            });
            in = prepare(rooms.inner.data(), inner_stride, m.inner);
            share_blocks(first + 5, layer.down, in, adder(layer, layer.mlp_end_norm));
        }
        finish();
    }
};

}  // namespace

extern "C" {

// Runs all layers over step.x.
void run_layers(const Model* model, const Step* step) {
    Run run(*model, *step);
#pragma omp parallel num_threads(step->threads)
    run.work();
}

// out [rows, (last - first) * 16] = x [rows, cols] @ the blocks first..last of a product.
void project(int64_t kind, const Product* product, const float* x, int64_t rows, int64_t first, int64_t last,
             float* out, int64_t threads) {
    Inputs in;
    in.values = x;
    in.stride = product->cols;
    in.groups = round_up(product->cols, GROUP) / GROUP;
    std::vector<int8_t> integers(is_integer(kind) ? rows * in.groups * GROUP : 0);
    std::vector<float> scales(integers.size() / GROUP);
    std::vector<int32_t> sums(integers.size() / GROUP);
    in.integers = integers.data();
    in.scales = scales.data();
    in.sums = sums.data();
    if (is_integer(kind))
        for (int64_t row = 0; row < rows; row++) quantise_row(x + row * product->cols, product->cols, in, row);
    const int64_t stride = (last - first) * BLOCK, some = 32, num = (last - first + some - 1) / some;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t item = 0; item < num; item++)
        multiply(kind, *product, in, rows, first + item * some, std::min(last, first + (item + 1) * some),
                 [&](int64_t row, int64_t block, __m256 low, __m256 high) {
                     float* to = out + row * stride + (block - first) * BLOCK;
                     _mm256_storeu_ps(to, low);
                     _mm256_storeu_ps(to + 8, high);
                 });
}
}
