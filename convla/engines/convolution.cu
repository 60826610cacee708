// Cross-correlation and its two adjoints by direct sums, for few channels and for integers, and what goes before and
// after products of matrices.
//
// A thread has POSITIONS places and CHANNELS channels of the result, whose weights all threads of a warp read at once;
// what is given it reads from the cache, and nothing is copied. THREADS is the size of a block.

#include "map.cuh"

// result[b, o, i] = sum over the taps t and channels c of laid[t, c, o] given[b, c, what i reads through t].
extern "C" __global__ void sum_directly(
    const REAL *__restrict__ given, const REAL *__restrict__ laid, const COUNT *__restrict__ table, REAL *result,
    int images, int width
) {
    const Map &map = *(const Map *)table;
    const Count all = images * product(map.counts), pixels = product(map.given);
    const Count tiles = (all - 1) / (THREADS * POSITIONS) + 1, parts = (map.outs + CHANNELS - 1) / CHANNELS;
    Count block = blockIdx.x;
    const Count start = block % tiles * THREADS * POSITIONS + threadIdx.x;
    block /= tiles;
    const int first = (int)(block % parts) * CHANNELS;
    block /= parts;
    const Index group = block % map.groups;
    const Count phase = block / map.groups;

    const REAL *images_of[POSITIONS];
    Place places[POSITIONS];
    for (int j = 0; j < POSITIONS; j++) {
        // The last place stands for what is beyond it, and is not written again.
        places[j] = place_of(map, smaller(start + j * THREADS, all - 1));
        images_of[j] = given + ((Index)places[j].image * map.groups + group) * map.ins * pixels;
    }
    const Count *slots[3];
    for (int a = 0; a < 3; a++) slots[a] = slots_of(map, table, phase_of(map, phase), a);
    const Count *sources0 = table + map.sources[0], *sources1 = table + map.sources[1];
    const Count *sources2 = table + map.sources[2];
    laid += group * product(map.taps) * map.ins * width + first;

    REAL sums[POSITIONS][CHANNELS];
    for (int j = 0; j < POSITIONS; j++)
        for (int r = 0; r < CHANNELS; r++) sums[j][r] = 0;
    for (int l0 = 0; l0 < slots[0][0]; l0++)
        for (int l1 = 0; l1 < slots[1][0]; l1++) {
            Count rows[POSITIONS];
            for (int j = 0; j < POSITIONS; j++) {
                const Count s0 = sources0[places[j].index[0] * map.steps[0] + slots[0][2 * l0 + 2]];
                const Count s1 = sources1[places[j].index[1] * map.steps[1] + slots[1][2 * l1 + 2]];
                rows[j] = s0 < 0 || s1 < 0 ? -1 : (s0 * map.given[1] + s1) * map.given[2];
            }
            for (int l2 = 0; l2 < slots[2][0]; l2++) {
                const REAL *values[POSITIONS];
                bool inside[POSITIONS];
                for (int j = 0; j < POSITIONS; j++) {
                    const Count s2 = sources2[places[j].index[2] * map.steps[2] + slots[2][2 * l2 + 2]];
                    inside[j] = rows[j] >= 0 && s2 >= 0;
                    values[j] = images_of[j] + (inside[j] ? rows[j] + s2 : 0);
                }
                const Count tap = (slots[0][2 * l0 + 1] * map.taps[1] + slots[1][2 * l1 + 1]) * map.taps[2];
                const REAL *weights = laid + (Index)(tap + slots[2][2 * l2 + 1]) * map.ins * width;
#pragma unroll 2
                for (int c = 0; c < map.ins; c++, weights += width) {
                    REAL row[CHANNELS];
                    if constexpr (CHANNELS % VECTOR == 0) {
                        for (int r = 0; r < CHANNELS; r += VECTOR) {
                            const Vector some = *(const Vector *)(weights + r);
                            for (int e = 0; e < VECTOR; e++) row[r + e] = some.at[e];
                        }
                    } else {
                        for (int r = 0; r < CHANNELS; r++) row[r] = weights[r];
                    }
                    for (int j = 0; j < POSITIONS; j++) {
                        const REAL value = inside[j] ? *values[j] : (REAL)0;
                        values[j] += pixels;
                        for (int r = 0; r < CHANNELS; r++) sums[j][r] += row[r] * value;
                    }
                }
            }
        }
    for (int j = 0; j < POSITIONS; j++) {
        const Spot spot = spot_of(map, phase, smaller(start + j * THREADS, all - 1));
        if (spot.index < 0 || start + j * THREADS >= all) continue;
        const Index channel = ((Index)spot.image * map.groups + group) * map.outs + first;
        for (int r = 0; r < CHANNELS; r++)
            if (first + r < map.outs) result[(channel + r) * product(map.results) + spot.index] = sums[j][r];
    }
}

// partial[s, o, c, t] = sum over the terms (b, p) of split s of features[b, o, p] image[b, c, what p reads through t].
//
// A block has one entry of the kernel and one split, which is `each` terms long. The table is that of the
// cross-correlation.
extern "C" __global__ void sum_kernel_adjoint(
    const REAL *features, const REAL *image, const COUNT *table, REAL *partial, COUNT terms, COUNT each
) {
    const Map &map = *(const Map *)table;
    const Count positions = product(map.counts), taps = product(map.taps), pixels = product(map.given);
    const Index entries = (Index)map.groups * map.outs * map.ins * taps;
    const Index entry = blockIdx.x % entries;
    const Count split = (Count)(blockIdx.x / entries);
    const int tap = (int)(entry % taps), c = (int)(entry / taps % map.ins);
    const Index o = entry / taps / map.ins, group = o / map.outs;
    const Count *sources0 = table + map.sources[0] + tap / map.taps[2] / map.taps[1] * map.dilations[0];
    const Count *sources1 = table + map.sources[1] + tap / map.taps[2] % map.taps[1] * map.dilations[1];
    const Count *sources2 = table + map.sources[2] + tap % map.taps[2] * map.dilations[2];

    REAL sum = 0;
    const Count first = split * each, count = smaller(each, terms - first);
    for (Count i = threadIdx.x; i < count; i += THREADS) {
        const Count term = first + i;
        const Place place = place_of(map, term);
        const Index batch = place.image;
        const Count position = term - place.image * positions;
        const Count s0 = sources0[place.index[0] * map.steps[0]], s1 = sources1[place.index[1] * map.steps[1]];
        const Count s2 = sources2[place.index[2] * map.steps[2]];
        if (s0 < 0 || s1 < 0 || s2 < 0) continue;
        const REAL *channel = image + ((batch * map.groups + group) * map.ins + c) * pixels;
        const Index feature = (batch * map.groups * map.outs + o) * positions + position;
        sum += features[feature] * channel[(s0 * map.given[1] + s1) * map.given[2] + s2];
    }

    // Halving: sums are added in one order, whichever thread comes first.
    __shared__ REAL sums[THREADS];
    sums[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partial[split * entries + entry] = sums[0];
}

// Lay a kernel (groups * outs, ins, taps) out as (groups, taps, depth, width), filled up with zeros: in a row the
// channels that a block reads together. Where `transposed`, the kernel's two axes of channels change places.
//
// A thread has one pair of channels.
extern "C" __global__ void lay_out(
    const REAL *kernel, REAL *laid, int outs, int ins, int taps, int depth, int width, int transposed, Index pairs
) {
    const Index pair = (Index)blockIdx.x * THREADS + threadIdx.x;
    if (pair >= pairs) return;
    const int out = (int)(pair % width), in = (int)(pair / width % depth);
    const Index group = pair / width / depth;
    const bool inside = out < outs && in < ins;
    const REAL *from = kernel + (transposed ? (group * ins + in) * outs + out : (group * outs + out) * ins + in) * taps;
    REAL *to = laid + (group * taps * depth + in) * width + out;
    for (int tap = 0; tap < taps; tap++, to += (Index)depth * width) *to = inside ? from[tap] : (REAL)0;
}

// image[q] = sum over the places of the extended image that hold pixel q: the transpose of an extension.
//
// A row of blocks has one channel. The table has for each axis first (pixels + 1) and the places from first[q] to first[q + 1] that hold pixel q.
struct Folding {
    Count pixels[3], places[3], lists[3];
};

extern "C" __global__ void fold(const REAL *extended, const COUNT *table, REAL *image) {
    const Folding &folding = *(const Folding *)table;
    const Count *pixels = folding.pixels, *places = folding.places;
    const Count all = product(pixels), across = (all - 1) / THREADS + 1, channel = blockIdx.x / across;
    const Count pixel = (blockIdx.x - channel * across) * THREADS + threadIdx.x, row = pixel / pixels[2];
    if (pixel >= all) return;
    const Count q[3] = {row / pixels[1], row % pixels[1], pixel % pixels[2]};
    const Count *lists[3];
    Count from[3], to[3];
    for (int a = 0; a < 3; a++) {
        const Count *first = table + folding.lists[a];
        lists[a] = first + pixels[a] + 1;
        from[a] = first[q[a]];
        to[a] = first[q[a] + 1];
    }
    REAL sum = 0;
    for (Count i0 = from[0]; i0 < to[0]; i0++)
        for (Count i1 = from[1]; i1 < to[1]; i1++) {
            const Index before = ((Index)channel * places[0] + lists[0][i0]) * places[1] + lists[1][i1];
            for (Count i2 = from[2]; i2 < to[2]; i2++) sum += extended[before * places[2] + lists[2][i2]];
        }
    image[(Index)channel * all + pixel] = sum;
}

// Add the partial sums of `sum_kernel_adjoint`, in one order.
extern "C" __global__ void add_up(const REAL *partial, const COUNT *table, REAL *kernel, Index splits) {
    const Map &map = *(const Map *)table;
    const Index entries = (Index)map.groups * map.outs * map.ins * product(map.taps);
    const Index entry = (Index)blockIdx.x * THREADS + threadIdx.x;
    if (entry >= entries) return;
    REAL sum = 0;
    for (Index split = 0; split < splits; split++) sum += partial[split * entries + entry];
    kernel[entry] = sum;
}
