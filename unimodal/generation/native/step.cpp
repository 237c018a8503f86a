// All layers of a decoder for a few new tokens, in one call: what a step does, without a framework between its parts.
//
// `native_layers.py` fills in these structures (they must agree with its ctypes classes), `build.py` compiles this file.

#include <memory>

#include "crew.h"
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

static Floats activate(int64_t kind, Floats x) {
    const Floats one = spread(1.0f);
    if (kind == SILU) return x / (one + exponential(spread(0.0f) - x));
    if (kind == GELU_TANH) {
        const Floats inner = multiply_add(x * x * x, spread(0.044715f), x);
        return spread(0.5f) * x * (one + hyperbolic_tangent(inner * spread(0.7978845608028654f)));
    }
    alignas(64) float held[LANES];
    store(held, x);
    for (float& v : held) v = 0.5f * v * (1.0f + std::erf(v * 0.70710678118654752f));
    return load(held);
}

namespace {

// The buffers that the threads of a step share.
struct Rooms {
    std::vector<float> normed, qkv, attended, added, inner;
    std::vector<int8_t> integers;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    std::unique_ptr<float[]> segment_sums;  // [tokens, heads, segments, head width]
    std::vector<Partial> segment_parts;     // [tokens, heads, segments]
    std::vector<Phase> phases;

    explicit Rooms(size_t num_phases) : phases(num_phases) {}
};

// A segment of what the tokens of a team see.
struct Piece {
    const Team* team;
    int64_t segment;
};

constexpr int64_t PHASES = 10;  // of a layer

class Run {
  public:
    Run(const Model& model, const Step& step)
        : m(model), s(step), tokens(step.streams * step.num_new), rooms(model.num_layers * PHASES + 1) {
        qkv_stride = round_up((m.heads + 2 * m.kv_heads) * m.head_width, BLOCK);
        added_stride = round_up(m.width, BLOCK);
        inner_stride = round_up(m.inner, GROUP);
        rooms.normed.resize(tokens * m.width);
        rooms.qkv.resize(tokens * qkv_stride);
        rooms.attended.resize(tokens * m.heads * m.head_width);
        rooms.added.resize(tokens * added_stride);
        rooms.inner.resize(tokens * inner_stride);
        for (int64_t token = 0; token < tokens; token++)
            for (const StepCache& held : s.held)
                if (held.high != nullptr) segments = std::max(segments, count_segments(held.high[token]));
        singles = make_teams(s.held[0].table, s.held[0].blocks, s.held[0].high, s.streams, s.num_new, 1);
        // so many that all threads have work
        const int64_t most = std::max<int64_t>(1, tokens * m.kv_heads * segments / (4 * s.threads));
        together = make_teams(s.held[0].table, s.held[0].blocks, s.held[0].high, s.streams, s.num_new, most);
        single_pieces = cut(singles);
        common_pieces = cut(together);
        rooms.segment_sums.reset(new float[tokens * m.heads * segments * m.head_width]);
        rooms.segment_parts.resize(tokens * m.heads * segments);
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
    int64_t qkv_stride, added_stride, inner_stride, segments = 1;
    std::vector<Team> singles, together;  // of layers with a window or a mask, and of all others, whose cache is the first
    std::vector<Piece> single_pieces, common_pieces;

    static int64_t count_segments(int64_t num) { return (num + SEGMENT - 1) / SEGMENT; }

    std::vector<Piece> cut(const std::vector<Team>& teams) const {
        std::vector<Piece> pieces;
        for (const Team& team : teams)
            for (int64_t segment = 0; segment < segments; segment++) pieces.push_back({&team, segment});
        return pieces;
    }

    // Adds outputs to x, or keeps them for the norm that comes first.
    auto adder(const Layer& layer, const float* norm) {
        return [this, &layer, norm](int64_t row, int64_t block, Floats found) {
            if (norm != nullptr) return store(rooms.added.data() + row * added_stride + block * BLOCK, found);
            alignas(64) float held[BLOCK] = {0};
            float* to = s.x + row * m.width + block * BLOCK;
            const int64_t num = std::min(BLOCK, m.width - block * BLOCK);
            std::memcpy(held, to, num * sizeof(float));
            store(held, multiply_add(found, spread(layer.residual), load(held)));
            std::memcpy(to, held, num * sizeof(float));
        };
    }

    template <class Keep>
    void share_blocks(Phase& phase, const Product& product, const Inputs& in, const Keep& keep) {
        const int64_t blocks = product.blocks();
        const int64_t some = std::max<int64_t>(4, round_up(blocks / (8 * s.threads), 4));
        phase.share((blocks + some - 1) / some, [&](int64_t item) {
            multiply(m.kind, product, in, tokens, item * some, std::min(blocks, (item + 1) * some), keep);
        });
    }

    // Some tokens at a time.
    template <class Work>
    void share_rows(Phase& phase, const Work& work) {
        const int64_t num = std::min(tokens, 4 * s.threads);
        phase.share(num, [&](int64_t item) {
            for (int64_t row = tokens * item / num; row < tokens * (item + 1) / num; row++) work(row);
        });
    }

    Inputs point_at(const float* values, int64_t stride, int64_t cols) {
        return {values, stride, rooms.integers.data(), rooms.scales.data(), rooms.sums.data(),
                round_up(cols, GROUP) / GROUP};
    }

    void add_end(const float* norm, int64_t row) {
        if (norm == nullptr) return;
        float* added = rooms.added.data() + row * added_stride;
        normalise(added, norm, m.width, m.eps, added);
        for (int64_t i = 0; i < m.width; i++) s.x[row * m.width + i] += added[i];
    }

    // Adds what waits for its norm to x, and prepares x behind the next norm.
    Inputs add_and_prepare(Phase& phase, const float* end_norm, const float* norm) {
        const Inputs in = point_at(rooms.normed.data(), m.width, m.width);
        share_rows(phase, [&](int64_t row) {
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

    void finish(Phase& phase) {
        const float* end_norm = m.num_layers ? m.layers[m.num_layers - 1].mlp_end_norm : nullptr;
        share_rows(phase, [&](int64_t row) {
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

    // Norm and rotation of `num` heads of a token, in their place.
    void turn_heads(const Layer& layer, const float* norm, int64_t token, int64_t head, int64_t num) {
        const int64_t width = m.head_width, half = m.rotary_width / 2;
        float* at = rooms.qkv.data() + token * qkv_stride + head * width;
        if (norm != nullptr && m.whole_norms) normalise(at, norm, num * width, m.eps, at);
        for (int64_t h = 0; h < num; h++) {
            if (norm != nullptr && !m.whole_norms) normalise(at + h * width, norm, width, m.eps, at + h * width);
            if (layer.rotary >= 0) {
                const int64_t table = s.position[token] * half;
                rotate(at + h * width, s.cos[layer.rotary] + table, s.sin[layer.rotary] + table, half);
            }
        }
    }

    // Queries and keys behind norm and rotation; keys and values go to the cache.
    void write_keys(Phase& phase, int64_t number) {
        const Layer& layer = m.layers[number];
        const int64_t parts = m.whole_norms ? 1 : m.kv_heads, kv = m.kv_heads / parts, heads = m.heads / parts;
        const int64_t* slot = s.held[layer.home].slot;
        const int64_t some = std::max<int64_t>(1, tokens * parts / (8 * s.threads));
        phase.share((tokens * parts + some - 1) / some, [&](int64_t item) {
            for (int64_t one = item * some; one < std::min(tokens * parts, (item + 1) * some); one++) {
                const int64_t token = one / parts, part = one % parts, stream = token / s.num_new;
                turn_heads(layer, layer.query_norm, token, part * heads, heads);
                turn_heads(layer, layer.key_norm, token, m.heads + part * kv, kv);
                const float* made = rooms.qkv.data() + token * qkv_stride + m.heads * m.head_width;
                for (int64_t head = part * kv; head < (part + 1) * kv && slot[token] >= 0; head++) {
                    entries(layer, 0, stream, head).write(slot[token], made + head * m.head_width);
                    entries(layer, 1, stream, head).write(slot[token], made + (m.kv_heads + head) * m.head_width);
                }
            }
        });
    }

    Sight find_sight(const Layer& layer, int64_t token) const {
        const StepCache& held = s.held[layer.home];
        Sight sight{held.low[token], held.high[token], nullptr};
        if (held.bias != nullptr)
            sight.bias = held.bias + held.bias_row[token] * held.bias_stride;
        else if (layer.window > 0)
            sight.low = std::max(sight.low, sight.high - layer.window);
        return sight;
    }

    void attend_all(Phase& phase, int64_t number) {
        const Layer& layer = m.layers[number];
        const bool alone = layer.window > 0 || s.held[layer.home].bias != nullptr;
        const std::vector<Piece>& pieces = alone ? single_pieces : common_pieces;
        const int64_t num = (int64_t)pieces.size(), group = m.heads / m.kv_heads;
        std::vector<float> room;
        std::vector<Member> members;
        phase.share(num * m.kv_heads, [&](int64_t item) {
            const Piece& piece = pieces[num - 1 - item % num];  // late tokens see most
            const int64_t kv_head = item / num;
            members.clear();
            for (int64_t token : piece.team->tokens) {
                const Sight sight = find_sight(layer, token);
                if (piece.segment >= count_segments(sight.num())) continue;
                const int64_t stream = token / s.num_new;
                const int64_t at = (token * m.heads + kv_head * group) * segments + piece.segment;
                members.push_back({rooms.qkv.data() + token * qkv_stride + kv_head * group * m.head_width,
                                   entries(layer, 0, stream, kv_head), entries(layer, 1, stream, kv_head), sight,
                                   rooms.segment_sums.get() + at * m.head_width, rooms.segment_parts.data() + at});
            }
            if (!members.empty())
                attend(members, group, piece.team->common, piece.segment, layer.scaling, layer.cap,
                       segments * m.head_width, segments, room);
        });
    }

    // What was attended to, as the products read it.
    Inputs join_all(Phase& phase, const Layer& layer) {
        const int64_t width = m.heads * m.head_width;
        const Inputs in = point_at(rooms.attended.data(), width, width);
        share_rows(phase, [&](int64_t token) {
            const int64_t num = count_segments(find_sight(layer, token).num());
            float* to = rooms.attended.data() + token * width;
            for (int64_t head = 0; head < m.heads; head++) {
                const int64_t at = (token * m.heads + head) * segments;
                join_segments(rooms.segment_sums.get() + at * m.head_width, m.head_width,
                              rooms.segment_parts.data() + at, num, m.head_width, to + head * m.head_width);
            }
            if (is_integer(m.kind)) quantise_row(to, width, in, token);
        });
        return in;
    }

    // What the activations made of gate and up, as the products read it.
    Inputs prepare_inner(Phase& phase) {
        const Inputs in = point_at(rooms.inner.data(), inner_stride, m.inner);
        if (is_integer(m.kind))
            share_rows(phase, [&](int64_t row) { quantise_row(in.values + row * inner_stride, m.inner, in, row); });
        return in;
    }

  public:
    void operator()() {
        for (int64_t number = 0; number < m.num_layers; number++) {
            const Layer& layer = m.layers[number];
            const Layer* before = number ? &m.layers[number - 1] : nullptr;
            Phase* phase = &rooms.phases[number * PHASES];
            Inputs in = add_and_prepare(phase[0], before ? before->mlp_end_norm : nullptr, layer.attention_norm);
            share_blocks(phase[1], layer.qkv, in, [&](int64_t row, int64_t block, Floats found) {
                store(rooms.qkv.data() + row * qkv_stride + block * BLOCK, found);
            });
            write_keys(phase[2], number);
            attend_all(phase[3], number);
            in = join_all(phase[4], layer);
            share_blocks(phase[5], layer.out, in, adder(layer, layer.attention_end_norm));
            in = add_and_prepare(phase[6], layer.attention_end_norm, layer.mlp_norm);
            share_blocks(phase[7], layer.gate_up, in, [&](int64_t row, int64_t block, Floats gate_up) {
                const __m256 gate = first_half(activate(m.activation, gate_up));
                _mm256_storeu_ps(rooms.inner.data() + row * inner_stride + block * (BLOCK / 2),
                                 _mm256_mul_ps(gate, second_half(gate_up)));
            });
            in = prepare_inner(phase[8]);
            share_blocks(phase[9], layer.down, in, adder(layer, layer.mlp_end_norm));
        }
        finish(rooms.phases.back());
    }
};

}  // namespace

extern "C" {

// Runs all layers over step.x.
void run_layers(const Model* model, const Step* step) {
    Run run(*model, *step);
    Crew::find().call(step->threads, run);
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
    Phase phase;
    auto share = [&] {
        phase.share(num, [&](int64_t item) {
            multiply(kind, *product, in, rows, first + item * some, std::min(last, first + (item + 1) * some),
                     [&](int64_t row, int64_t block, Floats found) {
                         store(out + row * stride + (block - first) * BLOCK, found);
                     });
        });
    };
    Crew::find().call(threads, share);
}
}
