// Cross-correlation and its two adjoints as implicit products of matrices: nothing is copied but into shared memory.
//
// A block has a tile of the product, ROWS by COLUMNS, and a thread TALL by WIDE entries of it in registers. DEPTH terms
// of the sums are multiplied at a time, from one of two places in shared memory; what comes next is on its way meanwhile,
// and goes to the other. Where few tiles would leave a device idle, the terms are split among several blocks, and their
// sums are added in one order.
//
// THREADS is the size of a block, BLOCKS how many of them a processor should have room for.

#include "map.cuh"

constexpr int ACROSS = COLUMNS / WIDE, DOWN = ROWS / TALL;
// A row of a tile in shared memory is one vector longer, so that threads that store along a column meet other banks.
constexpr int LEFT = ROWS / VECTOR + 1, RIGHT = COLUMNS / VECTOR + 1;

// Add the product of two tiles to a thread's sums. Its rows and columns are vectors that lie DOWN and ACROSS apart, so
// that neighbouring threads read neighbouring vectors.
__device__ void add_product(
    const Vector (&left)[DEPTH][LEFT], const Vector (&right)[DEPTH][RIGHT], REAL (&sums)[TALL][WIDE]
) {
    const int x = threadIdx.x % ACROSS, y = threadIdx.x / ACROSS;
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        Vector a[TALL / VECTOR], b[WIDE / VECTOR];
#pragma unroll
        for (int v = 0; v < TALL / VECTOR; v++) a[v] = left[k][v * DOWN + y];
#pragma unroll
        for (int h = 0; h < WIDE / VECTOR; h++) b[h] = right[k][h * ACROSS + x];
#pragma unroll
        for (int i = 0; i < TALL; i++)
#pragma unroll
            for (int j = 0; j < WIDE; j++) sums[i][j] += a[i / VECTOR].at[i % VECTOR] * b[j / VECTOR].at[j % VECTOR];
    }
}

__device__ int row_of(int i) { return (i / VECTOR * DOWN + (int)threadIdx.x / ACROSS) * VECTOR + i % VECTOR; }

__device__ int column_of(int j) { return (j / VECTOR * ACROSS + (int)threadIdx.x % ACROSS) * VECTOR + j % VECTOR; }

__device__ void store(REAL *to, const REAL *values) {
    Vector vector;
#pragma unroll
    for (int e = 0; e < VECTOR; e++) vector.at[e] = values[e];
    *(Vector *)to = vector;
}

__device__ Count rounded(Count count) { return (count + VECTOR - 1) / VECTOR * VECTOR; }

// The same sum as `sum_directly`, split among blocks where `splits` is above 1: then the result is partial[split,
// group, phase, o, n], for `add_splits`; n counts the places of all images, rounded up to whole vectors.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) multiply(
    const REAL *__restrict__ given, const REAL *__restrict__ laid, const COUNT *__restrict__ table, REAL *result,
    int images, int depth, int width, int splits
) {
    __shared__ Vector left[2][DEPTH][LEFT];
    __shared__ Vector right[2][DEPTH][RIGHT];
    static_assert(sizeof(left) + sizeof(right) <= 48 * 1024, "what every device has");
    const Map &map = *(const Map *)table;
    const Count all = images * product(map.counts), pixels = product(map.given);
    const Count tiles = (all - 1) / COLUMNS + 1, parts = (map.outs - 1) / ROWS + 1, phases = product(map.phases);
    Count block = blockIdx.x;
    const int part = (int)(block % parts);
    block /= parts;
    const Count tile = block % tiles;
    block /= tiles;
    const Count phase = block % phases;
    block /= phases;
    const Index group = block % map.groups;
    const int split = (int)(block / map.groups);
    const int thread = threadIdx.x;

    // Threads gather columns of the right tile: each OWN of them, in every PASS-th row.
    constexpr int PASS = THREADS > COLUMNS ? THREADS / COLUMNS : 1, OWN = COLUMNS > THREADS ? COLUMNS / THREADS : 1;
    constexpr int GATHERED = DEPTH / PASS;
    static_assert(PASS * COLUMNS == THREADS || OWN * THREADS == COLUMNS, "threads and columns");
    static_assert(GATHERED * PASS == DEPTH, "threads and rows");
    const int row = thread / COLUMNS;
    const REAL *image_of[OWN];
    Count starts[OWN][3];
    for (int u = 0; u < OWN; u++) {
        const Place place = place_of(map, smaller(tile * COLUMNS + thread % COLUMNS + u * THREADS, all - 1));
        image_of[u] = given + ((Index)place.image * map.groups + group) * map.ins * pixels;
        for (int a = 0; a < 3; a++) starts[u][a] = map.sources[a] + place.index[a] * map.steps[a];
    }
    const Count *slots[3];
    for (int a = 0; a < 3; a++) slots[a] = slots_of(map, table, phase_of(map, phase), a);
    const int slots1 = (int)slots[1][0], slots2 = (int)slots[2][0], chunks = depth / DEPTH;
    laid += group * product(map.taps) * depth * width + part * ROWS;

    const int steps = (int)slots[0][0] * slots1 * slots2 * chunks, each = (steps - 1) / splits + 1;
    const int from = split * each, to = from + each < steps ? from + each : steps;
    int slot = from / chunks, chunk = from % chunks;
    const REAL *values[OWN], *weights;
    bool inside[OWN];
    auto begin_tap = [&]() {
        const Count *l0 = slots[0] + slot / slots2 / slots1 * 2, *l1 = slots[1] + slot / slots2 % slots1 * 2;
        const Count *l2 = slots[2] + slot % slots2 * 2;
#pragma unroll
        for (int u = 0; u < OWN; u++) {
            const Count s0 = table[starts[u][0] + l0[2]], s1 = table[starts[u][1] + l1[2]];
            const Count s2 = table[starts[u][2] + l2[2]];
            inside[u] = s0 >= 0 && s1 >= 0 && s2 >= 0;
            values[u] = image_of[u] + (inside[u] ? (s0 * map.given[1] + s1) * map.given[2] + s2 : 0);
            values[u] += (Index)(chunk * DEPTH + row) * pixels;
        }
        weights = laid + ((Index)((l0[1] * map.taps[1] + l1[1]) * map.taps[2] + l2[1]) * depth + chunk * DEPTH) * width;
    };

    constexpr int VECTORS = DEPTH * (ROWS / VECTOR), LAID = (VECTORS + THREADS - 1) / THREADS;
    REAL gathered[OWN][GATHERED];
    Vector some[LAID];
    auto load = [&]() {
#pragma unroll
        for (int u = 0; u < OWN; u++) {
            const int count = inside[u] ? (int)map.ins - chunk * DEPTH - row : 0;
            const REAL *value = values[u];
#pragma unroll
            for (int j = 0; j < GATHERED; j++, value += (Index)PASS * pixels)
                gathered[u][j] = j * PASS < count ? *value : (REAL)0;
            values[u] += (Index)DEPTH * pixels;
        }
#pragma unroll
        for (int i = 0; i < LAID; i++) {
            const int at = thread + i * THREADS;
            if (VECTORS % THREADS == 0 || at < VECTORS)
                some[i] = *(const Vector *)(weights + (Index)(at / (ROWS / VECTOR)) * width + at % (ROWS / VECTOR) * VECTOR);
        }
        weights += (Index)DEPTH * width;
        if (++chunk == chunks) chunk = 0, slot++;
    };
    auto put = [&](int side) {
#pragma unroll
        for (int u = 0; u < OWN; u++)
#pragma unroll
            for (int j = 0; j < GATHERED; j++) {
                REAL *line = (REAL *)right[side][row + j * PASS];
                line[thread % COLUMNS + u * THREADS] = gathered[u][j];
            }
#pragma unroll
        for (int i = 0; i < LAID; i++) {
            const int at = thread + i * THREADS;
            if (VECTORS % THREADS == 0 || at < VECTORS) left[side][at / (ROWS / VECTOR)][at % (ROWS / VECTOR)] = some[i];
        }
    };

    REAL sums[TALL][WIDE];
#pragma unroll
    for (int i = 0; i < TALL; i++)
#pragma unroll
        for (int j = 0; j < WIDE; j++) sums[i][j] = 0;
    if (from < to) {
        begin_tap();
        load();
        put(0);
        __syncthreads();
        for (int step = from; step < to; step++) {
            const int side = (step - from) % 2;
            if (step + 1 < to) {
                if (chunk == 0) begin_tap();
                load();
            }
            add_product(left[side], right[side], sums);
            if (step + 1 < to) put(1 - side);
            __syncthreads();
        }
    }

    const Count line = rounded(all);
    const Index places = product(map.results);
    if (splits > 1) {
        result += (((Index)split * map.groups + group) * phases + phase) * map.outs * line;
#pragma unroll
        for (int j = 0; j < WIDE; j += VECTOR) {
            const Count n = tile * COLUMNS + column_of(j);
#pragma unroll
            for (int i = 0; i < TALL; i++) {
                const int o = part * ROWS + row_of(i);
                if (n < line && o < map.outs) store(result + o * (Index)line + n, sums[i] + j);
            }
        }
    } else if (phases == 1 && places % VECTOR == 0) {
#pragma unroll
        for (int j = 0; j < WIDE; j += VECTOR) {
            const Count n = tile * COLUMNS + column_of(j);
            const Spot spot = spot_of(map, phase, n);
            REAL *column = result + ((Index)spot.image * map.groups + group) * map.outs * places + spot.index;
#pragma unroll
            for (int i = 0; i < TALL; i++) {
                const int o = part * ROWS + row_of(i);
                if (n < all && o < map.outs) store(column + o * places, sums[i] + j);
            }
        }
    } else {
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            const Count n = tile * COLUMNS + column_of(j);
            const Spot spot = spot_of(map, phase, n);
            REAL *column = result + ((Index)spot.image * map.groups + group) * map.outs * places + spot.index;
#pragma unroll
            for (int i = 0; i < TALL; i++) {
                const int o = part * ROWS + row_of(i);
                if (n < all && spot.index >= 0 && o < map.outs) column[o * places] = sums[i][j];
            }
        }
    }
}

// Add the partial sums of `multiply`, in one order. A row of blocks has one channel of the result.
extern "C" __global__ void add_splits(const REAL *partial, const COUNT *table, REAL *result, int images, int splits) {
    const Map &map = *(const Map *)table;
    const Count all = images * product(map.counts), line = rounded(all), phases = product(map.phases);
    const Count across = (all - 1) / THREADS + 1, row = blockIdx.x / across;
    const Count n = (blockIdx.x - row * across) * THREADS + threadIdx.x;
    if (n >= all) return;
    const Index apart = (Index)map.groups * phases * map.outs * line;
    partial += (Index)row * line + n;
    REAL sum = 0;
#pragma unroll 8
    for (int split = 0; split < splits; split++) sum += partial[split * apart];
    const Count repeat = row / map.outs, group = repeat / phases;
    const Spot spot = spot_of(map, repeat - group * phases, n);
    if (spot.index < 0) return;
    const Index channel = ((Index)spot.image * map.groups + group) * map.outs + (row - repeat * map.outs);
    result[channel * product(map.results) + spot.index] = sum;
}

// partial[split, group, o, (t, c)] = sum over the terms n = (b, p) of a split of features[b, o, p] image[b, c, what p
// reads through t], for `add_kernels`; the channels c of a tap are rounded up to whole vectors.
//
// Both tiles come from arrays in which the terms are neighbours: threads that follow each other load neighbouring
// terms, each for a vector of channels. The table is that of the cross-correlation.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) multiply_kernel_adjoint(
    const REAL *__restrict__ features, const REAL *__restrict__ image, const COUNT *__restrict__ table, REAL *partial,
    int images, int splits
) {
    __shared__ Vector left[2][DEPTH][LEFT];
    __shared__ Vector right[2][DEPTH][RIGHT];
    static_assert(sizeof(left) + sizeof(right) <= 48 * 1024, "what every device has");
    const Map &map = *(const Map *)table;
    const Count positions = product(map.counts), all = images * positions, pixels = product(map.given);
    const Count ins = rounded(map.ins), columns = product(map.taps) * ins;
    const Count tiles = (columns - 1) / COLUMNS + 1, parts = (map.outs - 1) / ROWS + 1;
    Count block = blockIdx.x;
    const int part = (int)(block % parts);
    block /= parts;
    const Count tile = block % tiles;
    block /= tiles;
    const Index group = block % map.groups;
    const int split = (int)(block / map.groups);

    constexpr int LINES = THREADS / DEPTH;  // that are loaded at a time, each a vector of channels
    constexpr int LEFTS = (ROWS / VECTOR + LINES - 1) / LINES, RIGHTS = (COLUMNS / VECTOR + LINES - 1) / LINES;
    static_assert(LINES * DEPTH == THREADS, "threads and terms");
    const int term = threadIdx.x % DEPTH, line = threadIdx.x / DEPTH;
    int rows[LEFTS], channels[RIGHTS];  // how many channels are left for a vector
    Index row_starts[LEFTS], starts[RIGHTS];
    Count shifts[RIGHTS][3];
#pragma unroll
    for (int u = 0; u < LEFTS; u++) {
        const Count o = part * ROWS + (line + u * LINES) * VECTOR;
        rows[u] = line + u * LINES < ROWS / VECTOR ? (int)(map.outs - o) : 0;
        row_starts[u] = (group * map.outs + o) * positions;
    }
#pragma unroll
    for (int u = 0; u < RIGHTS; u++) {
        const Count column = tile * COLUMNS + (line + u * LINES) * VECTOR, tap = column / ins, c = column % ins;
        const bool inside = column < columns;
        channels[u] = inside ? (int)(map.ins - c) : 0;
        starts[u] = (group * map.ins + c) * pixels;
        const Count taps[3] = {
            tap / map.taps[2] / map.taps[1], tap / map.taps[2] % map.taps[1], tap % map.taps[2]
        };
        for (int a = 0; a < 3; a++) shifts[u][a] = map.sources[a] + (inside ? taps[a] * map.dilations[a] : 0);
    }

    const Count steps = (all - 1) / DEPTH + 1, each = (steps - 1) / splits + 1;
    const Count from = split * each, to = smaller(from + each, steps);
    // The term that is loaded next; it runs through the places of one image after another.
    const Count counts1 = map.counts[1], counts2 = map.counts[2], first = smaller(smaller(from, steps) * DEPTH + term, all - 1);
    Place place = place_of(map, first);
    Count position = first - place.image * positions;
    bool ended = from >= steps || from * DEPTH + term >= all;
    REAL lefts[LEFTS][VECTOR], rights[RIGHTS][VECTOR];
    auto load = [&]() {
        const REAL *feature = features + (Index)place.image * map.groups * map.outs * positions + position;
#pragma unroll
        for (int u = 0; u < LEFTS; u++) {
            const int count = ended ? 0 : rows[u];
            const REAL *value = feature + row_starts[u];
#pragma unroll
            for (int e = 0; e < VECTOR; e++, value += positions) lefts[u][e] = e < count ? *value : (REAL)0;
        }
        const REAL *pixel = image + (Index)place.image * map.groups * map.ins * pixels;
        const Count at0 = place.index[0] * map.steps[0], at1 = place.index[1] * map.steps[1];
        const Count at2 = place.index[2] * map.steps[2];
        Count source = -1;
#pragma unroll
        for (int u = 0; u < RIGHTS; u++) {
            const int before = u ? u - 1 : 0;
            const bool again = u && shifts[u][0] == shifts[before][0] && shifts[u][1] == shifts[before][1] &&
                               shifts[u][2] == shifts[before][2];  // neighbours are often of one tap
            if (!again) {
                const Count s0 = table[shifts[u][0] + at0], s1 = table[shifts[u][1] + at1];
                const Count s2 = table[shifts[u][2] + at2];
                source = s0 < 0 || s1 < 0 || s2 < 0 ? -1 : (s0 * map.given[1] + s1) * map.given[2] + s2;
            }
            const int count = ended || source < 0 ? 0 : channels[u];
            const REAL *value = pixel + starts[u] + source;
#pragma unroll
            for (int e = 0; e < VECTOR; e++, value += pixels) rights[u][e] = e < count ? *value : (REAL)0;
        }
        place.index[2] += DEPTH;
        position += DEPTH;
        while (place.index[2] >= counts2) {
            place.index[2] -= counts2;
            if (++place.index[1] == counts1) {
                place.index[1] = 0;
                if (++place.index[0] == map.counts[0]) {
                    place.index[0] = 0;
                    place.image++;
                    position -= positions;
                }
            }
        }
        ended = ended || place.image >= images;
    };
    auto put = [&](int side) {
#pragma unroll
        for (int u = 0; u < LEFTS; u++)
            if (line + u * LINES < ROWS / VECTOR) store((REAL *)&left[side][term][line + u * LINES], lefts[u]);
#pragma unroll
        for (int u = 0; u < RIGHTS; u++)
            if (line + u * LINES < COLUMNS / VECTOR) store((REAL *)&right[side][term][line + u * LINES], rights[u]);
    };

    REAL sums[TALL][WIDE];
#pragma unroll
    for (int i = 0; i < TALL; i++)
#pragma unroll
        for (int j = 0; j < WIDE; j++) sums[i][j] = 0;
    if (from < to) {
        load();
        put(0);
        __syncthreads();
        for (Count step = from; step < to; step++) {
            const int side = (int)((step - from) % 2);
            if (step + 1 < to) load();
            add_product(left[side], right[side], sums);
            if (step + 1 < to) put(1 - side);
            __syncthreads();
        }
    }
#pragma unroll
    for (int i = 0; i < TALL; i++) {
        const int o = part * ROWS + row_of(i);
        REAL *to_row = partial + (((Index)split * map.groups + group) * map.outs + o) * columns + tile * COLUMNS;
#pragma unroll
        for (int j = 0; j < WIDE; j += VECTOR)
            if (o < map.outs && tile * COLUMNS + column_of(j) < columns) store(to_row + column_of(j), sums[i] + j);
    }
}

// Add the partial sums of `multiply_kernel_adjoint`, in one order, into a kernel (groups * outs, ins, taps).
extern "C" __global__ void add_kernels(const REAL *partial, const COUNT *table, REAL *kernel, int splits) {
    const Map &map = *(const Map *)table;
    const Count taps = product(map.taps), ins = rounded(map.ins);
    const Index out = (Index)blockIdx.x * THREADS + threadIdx.x, outs = (Index)map.groups * map.outs;
    const int c = (int)(out % map.ins), tap = (int)(out / map.ins % taps);
    const Index o = out / map.ins / taps;
    if (o >= outs) return;
    const REAL *from = partial + (o * taps + tap) * ins + c;
    REAL sum = 0;
#pragma unroll 4
    for (int split = 0; split < splits; split++) sum += from[split * outs * taps * ins];
    kernel[(o * map.ins + c) * taps + tap] = sum;
}
