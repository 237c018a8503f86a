// Tokens that see the same entries first: these are read, and made floats, once for all of them.
//
// They are tokens of a prompt, or of streams whose prompts have a beginning in common and hold the same blocks. Each
// token's sums are taken in the order in which they would be taken for it alone.

#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"

constexpr int64_t MOST_TEAM = 8;        // tokens
constexpr int64_t LEAST_COMMON = 4 * CHUNK;  // entries in common that make it worth while

struct Team {
    std::vector<int64_t> tokens;
    int64_t common;  // entries from 0 on that all see, a whole number of blocks; 0 for one token
};

// Tokens in teams. table [streams, blocks]; high, of each token: it sees the entries before. most: tokens of a team.
inline std::vector<Team> make_teams(const int64_t* table, int64_t blocks, const int64_t* high, int64_t streams,
                                    int64_t num_new, int64_t most) {
    std::vector<int64_t> order(streams);
    for (int64_t i = 0; i < streams; i++) order[i] = i;
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        const int64_t *x = table + a * blocks, *y = table + b * blocks;
        return std::lexicographical_compare(x, x + blocks, y, y + blocks);
    });
    std::vector<Team> teams;
    for (int64_t stream : order) {
        for (int64_t token = stream * num_new; token < (stream + 1) * num_new; token++) {
            if (!teams.empty() && (int64_t)teams.back().tokens.size() < std::min(most, MOST_TEAM)) {
                Team& team = teams.back();
                const int64_t other = team.tokens.back();
                int64_t common = std::min(high[token], team.tokens.size() > 1 ? team.common : high[other]);
                const int64_t *x = table + stream * blocks, *y = table + other / num_new * blocks;
                int64_t same = 0;
                while (x != y && same < common / CHUNK && x[same] == y[same]) same++;
                common = x == y ? common / CHUNK * CHUNK : same * CHUNK;
                if (common >= LEAST_COMMON) {
                    team.tokens.push_back(token);
                    team.common = common;
                    continue;
                }
            }
            teams.push_back({{token}, 0});
        }
    }
    return teams;
}

// One member of a team: its queries, `heads` one after the other, its entries, what it sees, and where the sums of the
// segment and their parts go, each `stride` behind those of the head before.
struct Member {
    const float* q;
    Entries keys, values;
    Sight sight;
    float* sums;
    Partial* part;
};

// Segment number `segment` of `heads` queries of each member over the same head of keys and values; the first `common`
// entries are those of all. stride: of the sums of heads in floats, and of their parts.
inline void attend(const std::vector<Member>& members, int64_t heads, int64_t common, int64_t segment, float scale,
                   float cap, int64_t sums_stride, int64_t part_stride, std::vector<float>& room) {
    const int64_t width = members[0].keys.width, begin = segment * SEGMENT, shared = std::min(common, begin + SEGMENT);
    constexpr int64_t each = SEGMENT + LANES;
    room.resize(members.size() * heads * each + CHUNK * width);
    float* made = room.data() + members.size() * heads * each;
    const auto score = [&](size_t m, int64_t h, int64_t j) { return room.data() + (m * heads + h) * each + j - begin; };
    const auto end = [&](const Member& one) { return std::min(one.sight.num(), begin + SEGMENT); };
    for (int64_t j = begin; j < shared; j += CHUNK) {
        const float* held = members[0].keys.read(j, CHUNK, made);
        for (size_t m = 0; m < members.size(); m++)
            for (int64_t h = 0; h < heads; h++) score_keys(members[m].q + h * width, held, CHUNK, width, score(m, h, j));
    }
    for (size_t m = 0; m < members.size(); m++) {
        const Member& one = members[m];
        for (int64_t j = std::max(begin, common), some; j < end(one); j += some) {
            some = std::min(one.sight.rest(j), end(one) - j);
            const float* held = one.keys.read(one.sight.low + j, some, made);
            for (int64_t h = 0; h < heads; h++) score_keys(one.q + h * width, held, some, width, score(m, h, j));
        }
        for (int64_t h = 0; h < heads; h++) {
            one.part[h * part_stride] = weigh_scores(score(m, h, begin), std::max<int64_t>(0, end(one) - begin), begin,
                                                     one.sight, scale, cap);
            std::memset(one.sums + h * sums_stride, 0, width * sizeof(float));
        }
    }
    for (int64_t j = begin; j < shared; j += CHUNK) {
        const float* held = members[0].values.read(j, CHUNK, made);
        for (size_t m = 0; m < members.size(); m++)
            for (int64_t h = 0; h < heads; h++)
                add_values(score(m, h, j), held, CHUNK, width, members[m].sums + h * sums_stride);
    }
    for (size_t m = 0; m < members.size(); m++) {
        const Member& one = members[m];
        for (int64_t j = std::max(begin, common), some; j < end(one); j += some) {
            some = std::min(one.sight.rest(j), end(one) - j);
            const float* held = one.values.read(one.sight.low + j, some, made);
            for (int64_t h = 0; h < heads; h++)
                add_values(score(m, h, j), held, some, width, one.sums + h * sums_stride);
        }
    }
}
