// The experiments' descent on pairs of kernels: a thread for each repetition, for all iterations.
//
// A thread does the operations of the reference in the reference's order, without fused multiply-add, so both give the
// same bits. Arrays have the repetitions along their last axis, which the threads of a warp read side by side.
//
// TAPS is the length of the kernels.

typedef long long Index;

#define LAGS (2 * TAPS - 1)
// Kernels of up to 8 taps are kept in registers, which takes loops written out; longer ones would not fit there.
#define UNROLLED (TAPS <= 8 ? TAPS : 1)

__device__ double dot(const double *a, const double *b, int count) {
    double total = a[0] * b[0];
    for (int i = 1; i < count; i++) total += a[i] * b[i];
    return total;
}

// (K1 (x) K2)[t] at t + TAPS - 1.
__device__ void cross_correlate(const double *k1, const double *k2, double *r) {
    for (int t = 0; t < LAGS; t++) r[t] = 0.0;
#pragma unroll UNROLLED
    for (int a = 0; a < TAPS; a++)
        for (int b = 0; b < TAPS; b++) r[TAPS - 1 + b - a] += k1[a] * k2[b];
}

// a^T gram b; entries of gram are `step` apart.
__device__ double quadratic_form(const double *a, const double *gram, Index step, const double *b) {
    double total = 0.0;
#pragma unroll UNROLLED
    for (int i = 0; i < TAPS; i++) {
        double image = gram[i * TAPS * step] * b[0];
        for (int j = 1; j < TAPS; j++) image += gram[(i * TAPS + j) * step] * b[j];
        total = i == 0 ? a[0] * image : total + a[i] * image;
    }
    return total;
}

// loss: 0 kernel, 1 convolutional, 2 shrinkage.
__device__ double loss_and_gradient(
    Index loss, const double *k1, const double *k2, const double *r, double *g1, double *g2
) {
    if (loss == 0) {
        const double product = dot(k1, k2, TAPS);
        for (int i = 0; i < TAPS; i++) {
            g1[i] = 2.0 * product * k2[i];
            g2[i] = 2.0 * product * k1[i];
        }
        return product * product;
    }
    if (loss == 1) {
        for (int i = 0; i < TAPS; i++) g1[i] = g2[i] = 0.0;
#pragma unroll UNROLLED
        for (int a = 0; a < TAPS; a++) {
            for (int b = 0; b < TAPS; b++) {
                g1[a] += k2[b] * r[TAPS - 1 + b - a];
                g2[b] += k1[a] * r[TAPS - 1 + b - a];
            }
        }
        for (int i = 0; i < TAPS; i++) {
            g1[i] = 2.0 * g1[i];
            g2[i] = 2.0 * g2[i];
        }
        return dot(r, r, LAGS);
    }
    for (int i = 0; i < TAPS; i++) {
        g1[i] = 2.0 * k1[i];
        g2[i] = 2.0 * k2[i];
    }
    return dot(k1, k1, TAPS) + dot(k2, k2, TAPS);
}

__device__ double normalize(double value, const double *k1, const double *k2, double *g1, double *g2) {
    const double n1 = dot(k1, k1, TAPS), n2 = dot(k2, k2, TAPS), scale = n1 * n2;
    for (int i = 0; i < TAPS; i++) {
        g1[i] = (g1[i] - (2.0 * value / n1) * k1[i]) / scale;
        g2[i] = (g2[i] - (2.0 * value / n2) * k2[i]) / scale;
    }
    return value / scale;
}

// similarity: 0 squared, 1 absolute, 2 signed, 3 cosine.
__device__ double observe(
    Index similarity, bool toeplitz, const double *k1, const double *k2, const double *r, const double *gram, Index step
) {
    double seen;
    if (toeplitz) {
        seen = r[0] * gram[(TAPS - 1) * step];
        for (int t = 1; t < LAGS; t++) {
            const int lag = t < TAPS - 1 ? TAPS - 1 - t : t - (TAPS - 1);
            seen += r[t] * gram[lag * step];
        }
    } else {
        seen = quadratic_form(k1, gram, step, k2);
    }
    if (similarity == 0) return seen * seen;
    if (similarity == 1) return fabs(seen);
    if (similarity == 3)
        return seen / (sqrt(quadratic_form(k1, gram, step, k1)) * sqrt(quadratic_form(k2, gram, step, k2)));
    return seen;
}

// rule: 0 SGD, 1 momentum, 2 Nesterov, 3 AdaGrad, 4 RMSprop, 5 Adam; `first` has the velocity or first moment, `second`
// the squares or second moment.
__device__ void take_step(
    Index rule, double *k, const double *g, double *first, double *second, double length, double root
) {
    for (int i = 0; i < TAPS; i++) {
        if (rule == 0) {
            k[i] -= length * g[i];
        } else if (rule == 1) {
            first[i] = 0.9 * first[i] + g[i];
            k[i] -= length * first[i];
        } else if (rule == 2) {
            first[i] = 0.9 * first[i] + g[i];
            k[i] -= length * (g[i] + 0.9 * first[i]);
        } else if (rule == 3) {
            second[i] = second[i] + g[i] * g[i];
            k[i] -= length * g[i] / (sqrt(second[i]) + 1e-10);
        } else if (rule == 4) {
            second[i] = 0.99 * second[i] + (1.0 - 0.99) * (g[i] * g[i]);
            k[i] -= length * g[i] / (sqrt(second[i]) + 1e-8);
        } else {
            first[i] = 0.9 * first[i] + (1.0 - 0.9) * g[i];
            second[i] = 0.999 * second[i] + (1.0 - 0.999) * (g[i] * g[i]);
            k[i] -= length * (first[i] / (sqrt(second[i]) / root + 1e-8));
        }
    }
}

// k1s, k2s (TAPS, repetitions) are descended on in place; grams (TAPS^2, repetitions); lengths and roots (iterations)
// are the factors of each step; trace (5, repetitions) gets the correlation, the first and
// the last loss, the first and the last similarity.
extern "C" __global__ void descend_pairs(
    double *k1s, double *k2s, const double *grams, const double *lengths, const double *roots, double *trace,
    Index repetitions, Index iterations, Index loss, Index similarity, Index normalized, Index toeplitz, Index rule,
    Index both
) {
    const Index lane = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (lane >= repetitions) return;
    const double *gram = grams + lane;
    double k1[TAPS], k2[TAPS], g1[TAPS], g2[TAPS], r[LAGS];
    double first[2][TAPS], second[2][TAPS];
    for (int i = 0; i < TAPS; i++) {
        k1[i] = k1s[i * repetitions + lane];
        k2[i] = k2s[i * repetitions + lane];
        first[0][i] = first[1][i] = second[0][i] = second[1][i] = 0.0;
    }
    double mean_x = 0.0, mean_y = 0.0, xx = 0.0, yy = 0.0, xy = 0.0, value = 0.0, seen = 0.0;
    for (Index iteration = 0; iteration <= iterations; iteration++) {
        if (toeplitz || loss == 1) cross_correlate(k1, k2, r);
        value = loss_and_gradient(loss, k1, k2, r, g1, g2);
        if (normalized) value = normalize(value, k1, k2, g1, g2);
        seen = observe(similarity, toeplitz, k1, k2, r, gram, repetitions);
        // Welford's updates: no cancellation of large sums.
        const double count = (double)(iteration + 1), dx = value - mean_x, dy = seen - mean_y;
        mean_x += dx / count;
        mean_y += dy / count;
        const double rest = seen - mean_y;
        xx += dx * (value - mean_x);
        yy += dy * rest;
        xy += dx * rest;
        if (iteration == 0) {
            trace[repetitions + lane] = value;
            trace[3 * repetitions + lane] = seen;
        }
        if (iteration < iterations) {
            const double length = lengths[iteration], root = roots[iteration];
            take_step(rule, k1, g1, first[0], second[0], length, root);
            if (both) take_step(rule, k2, g2, first[1], second[1], length, root);
        }
    }
    trace[lane] = xy / (sqrt(xx) * sqrt(yy));
    trace[2 * repetitions + lane] = value;
    trace[4 * repetitions + lane] = seen;
    for (int i = 0; i < TAPS; i++) {
        k1s[i * repetitions + lane] = k1[i];
        k2s[i * repetitions + lane] = k2[i];
    }
}
