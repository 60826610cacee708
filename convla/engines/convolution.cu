// Cross-correlation and its two adjoints by direct sums, for one to three axes and any boundary: few channels.
//
// With few channels a product of matrices is small and the copy of all windows is what takes the time; here nothing is
// copied, and every entry of the image is read from the cache. What an output reads through a tap, and who reads a
// pixel, stands in a table for each axis, so that no boundary, stride or dilation has code of its own. An axis that an
// image does not have is one of length 1. A thread sums for one position and CHANNELS channels, whose weights all
// threads of a warp read at once.
//
// REAL is the type of the entries, CHANNELS the channels of one thread, THREADS the threads of a block.

typedef long long Index;

// The head of a table: sizes; see `convla.engines.cupy_convolution`.
struct Sizes {
    int groups, outs, ins;  // the channels of a group
    int outputs[3], taps[3], pixels[3];
};

__device__ int product(const int *sizes) { return sizes[0] * sizes[1] * sizes[2]; }

// features[b, o, p] = sum over c and taps t of weights[o, c, t] image[b, c, reads(p, t)].
//
// After the head the table has for each axis the index (outputs, taps) of the pixel that is read, or -1 for a zero.
extern "C" __global__ void correlate(
    const REAL *image, const REAL *weights, const int *table, REAL *features
) {
    const Sizes &sizes = *(const Sizes *)table;
    const int positions = product(sizes.outputs), taps = product(sizes.taps), pixels = product(sizes.pixels);
    const int tiles = (positions + THREADS - 1) / THREADS, parts = (sizes.outs + CHANNELS - 1) / CHANNELS;
    Index block = blockIdx.x;
    const int position = (int)(block % tiles) * THREADS + threadIdx.x;
    block /= tiles;
    const int first = (int)(block % parts) * CHANNELS;
    block /= parts;
    const Index group = block % sizes.groups, batch = block / sizes.groups;
    if (position >= positions) return;

    const int o2 = position % sizes.outputs[2], rest = position / sizes.outputs[2];
    const int o1 = rest % sizes.outputs[1], o0 = rest / sizes.outputs[1];
    const int *reads = table + sizeof(Sizes) / sizeof(int);
    const int *reads0 = reads + o0 * sizes.taps[0];
    reads += sizes.outputs[0] * sizes.taps[0];
    const int *reads1 = reads + o1 * sizes.taps[1];
    reads += sizes.outputs[1] * sizes.taps[1];
    const int *reads2 = reads + o2 * sizes.taps[2];

    // Where fewer channels are left, the last one is summed again and not written.
    const int left = sizes.outs - first, count = left < CHANNELS ? left : CHANNELS;
    const REAL *rows[CHANNELS];
    REAL sums[CHANNELS];
    for (int r = 0; r < CHANNELS; r++) {
        rows[r] = weights + (group * sizes.outs + first + (r < count ? r : count - 1)) * sizes.ins * taps;
        sums[r] = 0;
    }
    for (int c = 0; c < sizes.ins; c++) {
        const REAL *channel = image + ((batch * sizes.groups + group) * sizes.ins + c) * pixels;
        int term = c * taps;
        for (int a0 = 0; a0 < sizes.taps[0]; a0++) {
            const int s0 = reads0[a0];
            for (int a1 = 0; a1 < sizes.taps[1]; a1++) {
                const int s1 = reads1[a1];
                const REAL *row = channel + (Index)(s0 * sizes.pixels[1] + s1) * sizes.pixels[2];
                for (int a2 = 0; a2 < sizes.taps[2]; a2++, term++) {
                    const int s2 = reads2[a2];
                    if (s0 < 0 || s1 < 0 || s2 < 0) continue;
                    const REAL value = row[s2];
                    for (int r = 0; r < CHANNELS; r++) sums[r] += rows[r][term] * value;
                }
            }
        }
    }
    for (int r = 0; r < count; r++) {
        const Index channel = (batch * sizes.groups + group) * sizes.outs + first + r;
        features[channel * positions + position] = sums[r];
    }
}

// image[b, c, q] = sum over o and the pairs (p, t) that read q of weights[o, c, t] features[b, o, p].
//
// After the head the table has for each axis first (pixels + 1) and then, from first[q] to first[q + 1], the pairs
// (output, tap) that read pixel q.
extern "C" __global__ void correlate_image_adjoint(
    const REAL *features, const REAL *weights, const int *table, REAL *image
) {
    const Sizes &sizes = *(const Sizes *)table;
    const int positions = product(sizes.outputs), taps = product(sizes.taps), pixels = product(sizes.pixels);
    const int tiles = (pixels + THREADS - 1) / THREADS, parts = (sizes.ins + CHANNELS - 1) / CHANNELS;
    Index block = blockIdx.x;
    const int pixel = (int)(block % tiles) * THREADS + threadIdx.x;
    block /= tiles;
    const int first = (int)(block % parts) * CHANNELS;
    block /= parts;
    const Index group = block % sizes.groups, batch = block / sizes.groups;
    if (pixel >= pixels) return;

    const int index[3] = {
        pixel / sizes.pixels[2] / sizes.pixels[1], pixel / sizes.pixels[2] % sizes.pixels[1], pixel % sizes.pixels[2]
    };
    const int *readers[3];
    int from[3], to[3];
    const int *axis = table + sizeof(Sizes) / sizeof(int);
    for (int a = 0; a < 3; a++) {
        readers[a] = axis + sizes.pixels[a] + 1;
        from[a] = axis[index[a]];
        to[a] = axis[index[a] + 1];
        axis = readers[a] + 2 * axis[sizes.pixels[a]];
    }

    const int left = sizes.ins - first, count = left < CHANNELS ? left : CHANNELS;
    REAL sums[CHANNELS];
    for (int r = 0; r < CHANNELS; r++) sums[r] = 0;
    for (int o = 0; o < sizes.outs; o++) {
        const REAL *channel = features + ((batch * sizes.groups + group) * sizes.outs + o) * positions;
        const REAL *filter = weights + (group * sizes.outs + o) * sizes.ins * taps;
        for (int i0 = from[0]; i0 < to[0]; i0++) {
            const int p0 = readers[0][2 * i0], t0 = readers[0][2 * i0 + 1];
            for (int i1 = from[1]; i1 < to[1]; i1++) {
                const int p1 = p0 * sizes.outputs[1] + readers[1][2 * i1];
                const int t1 = t0 * sizes.taps[1] + readers[1][2 * i1 + 1];
                for (int i2 = from[2]; i2 < to[2]; i2++) {
                    const REAL value = channel[p1 * sizes.outputs[2] + readers[2][2 * i2]];
                    const int tap = t1 * sizes.taps[2] + readers[2][2 * i2 + 1];
                    for (int r = 0; r < CHANNELS; r++) {
                        const int c = first + (r < count ? r : count - 1);
                        sums[r] += filter[(Index)c * taps + tap] * value;
                    }
                }
            }
        }
    }
    for (int r = 0; r < count; r++) {
        const Index channel = (batch * sizes.groups + group) * sizes.ins + first + r;
        image[channel * pixels + pixel] = sums[r];
    }
}

// partial[s, o, c, t] = sum over the terms (b, p) of split s of features[b, o, p] image[b, c, reads(p, t)].
//
// A block has one entry of the kernel and one split, which is `each` terms long. The table is that of `correlate`.
extern "C" __global__ void correlate_kernel_adjoint(
    const REAL *features, const REAL *image, const int *table, REAL *partial, Index terms, Index each
) {
    const Sizes &sizes = *(const Sizes *)table;
    const int positions = product(sizes.outputs), taps = product(sizes.taps), pixels = product(sizes.pixels);
    const Index entries = (Index)sizes.groups * sizes.outs * sizes.ins * taps;
    const Index entry = blockIdx.x % entries, split = blockIdx.x / entries;
    const int tap = (int)(entry % taps), c = (int)(entry / taps % sizes.ins);
    const Index o = entry / taps / sizes.ins, group = o / sizes.outs;
    const int a2 = tap % sizes.taps[2], a1 = tap / sizes.taps[2] % sizes.taps[1];
    const int a0 = tap / sizes.taps[2] / sizes.taps[1];
    const int *reads0 = table + sizeof(Sizes) / sizeof(int);
    const int *reads1 = reads0 + sizes.outputs[0] * sizes.taps[0];
    const int *reads2 = reads1 + sizes.outputs[1] * sizes.taps[1];

    REAL sum = 0;
    const Index last = (split + 1) * each < terms ? (split + 1) * each : terms;
    for (Index term = split * each + threadIdx.x; term < last; term += THREADS) {
        const Index batch = term / positions;
        const int position = (int)(term % positions);
        const int o2 = position % sizes.outputs[2], rest = position / sizes.outputs[2];
        const int s0 = reads0[rest / sizes.outputs[1] * sizes.taps[0] + a0];
        const int s1 = reads1[rest % sizes.outputs[1] * sizes.taps[1] + a1];
        const int s2 = reads2[o2 * sizes.taps[2] + a2];
        if (s0 < 0 || s1 < 0 || s2 < 0) continue;
        const REAL *channel = image + ((batch * sizes.groups + group) * sizes.ins + c) * pixels;
        const Index feature = (batch * sizes.groups * sizes.outs + o) * positions + position;
        sum += features[feature] * channel[(s0 * sizes.pixels[1] + s1) * sizes.pixels[2] + s2];
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
