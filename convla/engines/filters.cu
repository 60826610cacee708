// Convolutional similarity: a block for each filter, of one layer or of all layers of a network in the same launch.
//
// The channels of a filter are copied to shared memory, as many at a time as fit, and widened: sums and products are
// those of SUM, float64 for either floating-point type. Where taps and lags stand is told by tables of flat indices.
//
// REAL is the type of the entries, SUM of sums, THREADS the threads of a block, TILE the entries that are copied at a
// time, of at least one channel, LAGS the most lags.

typedef long long Index;

// One of the layers, whose filters, entries and lags stand one after another; see `convla.engines.cupy_filters`.
struct Layer {
    Index first, filters, channels, taps, middle;  // its first filter and its sizes; lag 0 is the middle one
    Index entries, lags, pairs;                    // where its entries, its lags, and its blocks of `pair_filters` begin
    Index readers, offsets;                        // where its parts of the tables do
};

// Return the last layer whose `begins` is not beyond `at`.
__device__ const Layer &layer_of(const Index *layers, Index count, Index Layer::*begins, Index at) {
    const Layer *all = (const Layer *)layers;
    Index low = 0, high = count;
    while (high - low > 1) {
        const Index half = (low + high) / 2;
        if (all[half].*begins <= at) low = half;
        else high = half;
    }
    return all[low];
}

// Copy whole channels, from `start` on; return how many.
__device__ Index load(const REAL *filter, SUM *tile, Index start, Index channels, Index taps) {
    const Index most = TILE / taps, count = channels - start < most ? channels - start : most;
    for (Index i = threadIdx.x; i < count * taps; i += THREADS) tile[i] = filter[start * taps + i];
    return count;
}

// lags[i, middle + h] = lags[i, middle - h] = sum over channels c and pairs of taps (p, q) at lag h of
// kernels[i, c, p] kernels[i, c, q].
//
// A layer's part of the tables has first (middle + 2) and then, from first[h] to first[h + 1], the pairs (p, q) at lag
// h, h = 0 .. middle.
extern "C" __global__ void summed_autocorrelations(
    const REAL *kernels, const Index *layers, Index count, const int *tables, SUM *lags
) {
    __shared__ SUM tile[TILE];
    __shared__ SUM sums[THREADS];
    const Layer layer = layer_of(layers, count, &Layer::first, blockIdx.x);
    const Index channels = layer.channels, taps = layer.taps, middle = layer.middle, place = blockIdx.x - layer.first;
    const int *table = tables + layer.readers, *pairs = table + middle + 2, total = table[middle + 1];
    const REAL *filter = kernels + layer.entries + place * channels * taps;
    SUM *row = lags + layer.lags + place * (2 * middle + 1) + middle;
    // As many threads for each pair as there are, each with some of the channels.
    const int shares = total < THREADS ? THREADS / total : 1, width = THREADS / shares;
    const int column = threadIdx.x / shares, share = threadIdx.x % shares;
    for (Index h = threadIdx.x; h <= middle; h += THREADS) row[h] = 0;
    for (int base = 0; base < total; base += width) {
        const int pair = base + column;
        const bool taken = column < width && pair < total;
        const int p = taken ? pairs[2 * pair] : 0, q = taken ? pairs[2 * pair + 1] : 0;
        SUM sum = 0;
        for (Index start = 0, some; start < channels; start += some) {
            __syncthreads();
            some = load(filter, tile, start, channels, taps);
            __syncthreads();
            if (taken)
                for (Index c = share; c < some; c += shares) sum += tile[c * taps + p] * tile[c * taps + q];
        }
        sums[threadIdx.x] = sum;
        __syncthreads();
        for (Index h = threadIdx.x; h <= middle; h += THREADS) {
            const int from = table[h] > base ? table[h] : base;
            const int to = table[h + 1] < base + width ? table[h + 1] : base + width;
            SUM at = row[h];
            for (int i = (from - base) * shares; i < (to - base) * shares; i++) at += sums[i];
            row[h] = at;
        }
    }
    for (Index h = threadIdx.x; h <= middle; h += THREADS) row[-h] = row[h];
}

// out[i, c, q] = scale times the sum over taps p of w[i, middle + offsets[p] - offsets[q]] kernels[i, c, p].
//
// w are the weights, which are even; where `normalized`, what the gradient of the similarity of the filters scaled to
// norm 1 makes of them: (w - <w, s> e) / E with the signature s of the scaled filter, E the squared norm of the filter
// and e = 1 at lag 0. `lags` are the signatures of the filters as they are, and are read for that only.
extern "C" __global__ void correlate_lags(
    const REAL *kernels, const SUM *weights, const SUM *lags, const Index *layers, Index count, const int *tables,
    REAL *out, Index scale, Index normalized
) {
    __shared__ SUM tile[TILE];
    __shared__ SUM row[LAGS];
    __shared__ SUM sums[THREADS];
    const Layer layer = layer_of(layers, count, &Layer::first, blockIdx.x);
    const Index channels = layer.channels, taps = layer.taps, middle = layer.middle, place = blockIdx.x - layer.first;
    const Index start_of_row = layer.lags + place * (2 * middle + 1);
    const int *offsets = tables + layer.offsets;
    const REAL *filter = kernels + layer.entries + place * channels * taps;
    REAL *result = out + layer.entries + place * channels * taps;
    const SUM energy = normalized ? lags[start_of_row + middle] : 1;
    SUM along = 0;
    for (Index t = threadIdx.x; t <= 2 * middle; t += THREADS) {
        row[t] = weights[start_of_row + t];
        if (normalized) along += row[t] * (lags[start_of_row + t] / energy);
    }
    sums[threadIdx.x] = along;
    __syncthreads();
    if (normalized && threadIdx.x == 0) {
        for (int s = 1; s < THREADS; s++) along += sums[s];
        row[middle] -= along;
    }
    for (Index start = 0, some; start < channels; start += some) {
        __syncthreads();
        some = load(filter, tile, start, channels, taps);
        __syncthreads();
        for (Index i = threadIdx.x; i < some * taps; i += THREADS) {
            const Index q = i % taps, zero = middle - offsets[q];
            const SUM *channel = tile + i - q;
            SUM sum = 0;
            for (Index p = 0; p < taps; p++) sum += row[zero + offsets[p]] * channel[p];
            result[start * taps + i] = (REAL)((SUM)scale * sum / energy);
        }
    }
}

// Over the filters i of a layer, s_i = lags[i, .], divided by their middle entry where `normalized`:
// weights[i, middle + h] = weights[i, middle - h] = the sum of the s_j of all others at lag h, and
// values[block] = sum over i of s_i times the sum of the s_j, j < i, at the lags h and -h.
//
// A block has one lag h of one layer and a thread some filters that follow each other. Others are added up, before and
// after, and not subtracted from the total: a large signature must not swallow small ones. In the block of lag 0 the
// value is NaN where the middle entry of a filter, its squared norm, is not within [low, high].
extern "C" __global__ void pair_filters(
    const double *lags, const Index *layers, Index count, double *weights, double *values, double low, double high,
    Index normalized
) {
    __shared__ double sums[THREADS];
    const Layer layer = layer_of(layers, count, &Layer::pairs, blockIdx.x);
    const Index h = blockIdx.x - layer.pairs, width = 2 * layer.middle + 1, each = (layer.filters + THREADS - 1) / THREADS;
    Index from = threadIdx.x * each, to = from + each;
    from = from < layer.filters ? from : layer.filters;
    to = to < layer.filters ? to : layer.filters;
    const double *rows = lags + layer.lags + layer.middle;
    double *others = weights + layer.lags + layer.middle;

    double sum = 0.0;
    bool safe = true;
    for (Index i = from; i < to; i++) {
        const double energy = rows[i * width];
        safe = safe && energy >= low && energy <= high;
        sum += normalized ? rows[i * width + h] / energy : rows[i * width + h];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    double before = 0.0, after = 0.0, value = 0.0;
    for (int s = 0; s < (int)threadIdx.x; s++) before += sums[s];
    for (int s = THREADS - 1; s > (int)threadIdx.x; s--) after += sums[s];
    for (Index i = to; i-- > from;) {
        others[i * width + h] = after;
        after += normalized ? rows[i * width + h] / rows[i * width] : rows[i * width + h];
    }
    for (Index i = from; i < to; i++) {
        const double own = normalized ? rows[i * width + h] / rows[i * width] : rows[i * width + h];
        others[i * width + h] += before;
        others[i * width - h] = others[i * width + h];
        value += own * before;
        before += own;
    }
    __syncthreads();
    sums[threadIdx.x] = safe || h ? value : nan("");
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) values[blockIdx.x] = h ? 2.0 * sums[0] : sums[0];
}

// totals[layer] = scale times the sum of the layer's values, in the precision of its entries.
extern "C" __global__ void add_up(const double *values, const Index *layers, Index count, double *totals, Index scale) {
    const Index place = (Index)blockIdx.x * THREADS + threadIdx.x;
    if (place >= count) return;
    const Layer &layer = ((const Layer *)layers)[place];
    double sum = 0.0;
    for (Index h = 0; h <= layer.middle; h++) sum += values[layer.pairs + h];
    totals[place] = (double)(REAL)((double)scale * sum);
}
