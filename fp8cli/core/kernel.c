/* FP8 arithmetic for CPUs: quantizing and decoding as core/quantizing/fp8.py does with torch, and looking at weights
 * and at what came of them.
 *
 * For each row (or 128x128 block, or the whole) of a weight W, with d the dtype of W (BF16, FP16 or FP32):
 *
 *     amax  = max |W|
 *     scale = round_d(amax / 448);  0 becomes the epsilon of d
 *     codes = e4m3(min(round_d(|W| / scale), 448)), with the sign of W unless round_d(...) is zero
 *
 * All rounding is to nearest, ties to even. Quotients of BF16 and FP16 values are computed in FP32 and rounded once
 * more, as torch does. core/quantizing/fp8.py says where the formula comes from; tests/test_kernel.py holds the two together on
 * every BF16 and FP16 bit pattern. Everything is plain C that compilers turn into vector code; on x86-64 the same
 * functions are compiled for AVX2 and AVX-512 too, and the caller chooses at run time.
 */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

enum dtype { BF16 = 0, F16 = 1, F32 = 2, E4M3 = 3, E8M0 = 4 };

enum { BLOCK = 128, LANES = 16, INTERFACE = 4 };

/* What a call reports. `bad_row` is -1 unless the weight holds NaN or Inf, or a decoded one comes to that; then nothing
 * else is meant. */
struct report {
    int64_t bad_row, bad_column, bad_is_nan;
    int64_t harmed, first_harmed; /* scales that lose their values (fp8.harmed_by_scale), and the row of the first */
};

/* What `fp8_scan` counts in a weight. For E4M3 `infinite` counts the codes of +-448, which has no infinity. */
struct census {
    int64_t nan, infinite, zero_rows;
    int64_t first_row, first_column; /* of the first NaN, or Inf of the wider dtypes; -1 without one */
};

/* What `fp8_compare` sums up over the elements of a weight W and its decoded codes Q. */
struct distance {
    double signal, noise; /* sum of W^2, sum of (W - Q)^2 */
    double largest;       /* max |W - Q| */
    int64_t row, column;  /* where that is */
};

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Magnitude of a finite BF16, FP16 or FP32 value, given as its bits without the sign. Exact. */
INLINE float magnitude(uint32_t bits, enum dtype d) {
    if (d == F32) return from_bits(bits);
    if (d == BF16) return from_bits(bits << 16);
    float subnormal = (float)(int32_t)bits * 0x1p-24f;
    float normal = from_bits((bits << 13) + (112u << 23));
    return bits < 0x400 ? subnormal : normal;
}

/* Round a quotient, given as FP32 bits without sign, to the precision of d. For FP16 only what E4M3 can tell apart
 * is kept right: below 2^-14, where FP16 is subnormal, E4M3 knows nothing but zero, and so does FP16 from 2^-25 on. */
INLINE uint32_t round_to(uint32_t u, enum dtype d) {
    if (d == BF16) return (u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000u;
    if (d == F16) return u <= 0x33000000u ? 0 : (u + 0xfff + ((u >> 13) & 1)) & 0xffffe000u;
    return u;
}

/* E4M3 code of a magnitude given as FP32 bits. */
INLINE uint32_t e4m3(uint32_t u) {
    u = u < 0x43e00000u ? u : 0x43e00000u; /* 448 */
    uint32_t normal = ((u + 0x7ffff + ((u >> 20) & 1)) >> 20) - (120u << 3);
    /* Adding 2^14 leaves the multiples of 2^-9, E4M3's smallest step, in the last bits of an FP32 number. */
    uint32_t subnormal = bits_of(from_bits(u) + 16384.0f) - 0x46800000u;
    return u < 0x3c800000u ? subnormal : normal; /* 2^-6 */
}

INLINE uint32_t element(const void *data, int64_t i, enum dtype d) {
    return d == F32 ? ((const uint32_t *)data)[i] : ((const uint16_t *)data)[i];
}

INLINE uint32_t sign_bit(enum dtype d) { return d == F32 ? 0x80000000u : 0x8000u; }

INLINE uint32_t infinity(enum dtype d) { return d == F32 ? 0x7f800000u : d == BF16 ? 0x7f80u : 0x7c00u; }

/* Largest magnitude of n values, as bits: ordered as the values are, with Inf and NaN above all. */
INLINE uint32_t largest(const void *data, int64_t n, enum dtype d) {
    if (d == F32) {
        const uint32_t *x = data;
        uint32_t top = 0;
        for (int64_t i = 0; i < n; i++) {
            uint32_t m = x[i] & 0x7fffffffu;
            top = m > top ? m : top;
        }
        return top;
    }
    const uint16_t *x = data;
    uint16_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t m = x[i] & 0x7fff;
        top = m > top ? m : top;
    }
    return top;
}

INLINE void encode(const void *data, int64_t n, float scale, uint8_t *codes, enum dtype d) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t x = element(data, i, d);
        uint32_t sign = x & sign_bit(d);
        uint32_t u = round_to(bits_of(magnitude(x ^ sign, d) / scale), d);
        uint32_t negative = d == F32 ? sign >> 24 : sign >> 8;
        codes[i] = (uint8_t)(e4m3(u) | (u ? negative : 0));
    }
}

/* The scale of one row or block, written as d to `scales[i]`; returns it as FP32 and notes whether it does harm. */
INLINE float write_scale(uint32_t amax_bits, void *scales, int64_t i, enum dtype d, struct report *report, int64_t row) {
    float amax = magnitude(amax_bits, d);
    uint32_t u = bits_of(amax / 448.0f), stored;
    if (d == F32) {
        stored = u ? u : 0x34000000u; /* 2^-23 */
        ((uint32_t *)scales)[i] = stored;
    } else if (d == BF16) {
        stored = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        stored = stored ? stored : 0x3c00u; /* 2^-7 */
        ((uint16_t *)scales)[i] = (uint16_t)stored;
    } else {
        /* Below 2^-14 the steps of FP16 are 2^-24: adding 0.5 leaves their multiples in an FP32's last bits. */
        uint32_t normal = ((u + 0xfff + ((u >> 13) & 1)) >> 13) - (112u << 10);
        uint32_t subnormal = bits_of(from_bits(u) + 0.5f) - 0x3f000000u;
        stored = u < 0x38800000u ? subnormal : normal;
        stored = stored ? stored : 0x1400u; /* 2^-10 */
        ((uint16_t *)scales)[i] = (uint16_t)stored;
    }
    float scale = magnitude(stored, d);
    int underflowed = 0;
    if (amax_bits) {
        if (d == F32) underflowed = u == 0;
        if (d == BF16) underflowed = u <= 0x8000u;
        if (d == F16) underflowed = u <= 0x33000000u;
    }
    if (underflowed || amax > 464.0f * scale) {
        if (!report->harmed++) report->first_harmed = row;
    }
    return scale;
}

/* Note the first NaN or Inf; call it only where there is one. */
INLINE void find_bad(const void *data, int64_t rows, int64_t columns, enum dtype d, struct report *report) {
    for (int64_t i = 0; i < rows * columns; i++) {
        uint32_t m = element(data, i, d) & ~sign_bit(d);
        if (m >= infinity(d)) {
            report->bad_row = i / columns;
            report->bad_column = i % columns;
            report->bad_is_nan = m > infinity(d);
            return;
        }
    }
}

INLINE const void *at(const void *data, int64_t i, enum dtype d) {
    return (const char *)data + i * (d == F32 ? 4 : 2);
}

INLINE void rows_body(const void *weight, int64_t rows, int64_t columns, uint8_t *codes, void *scales,
                      struct report *report, enum dtype d) {
    for (int64_t r = 0; r < rows; r++) {
        const void *row = at(weight, r * columns, d);
        uint32_t amax = largest(row, columns, d);
        if (amax >= infinity(d)) {
            find_bad(weight, rows, columns, d, report);
            return;
        }
        float scale = write_scale(amax, scales, r, d, report, r);
        encode(row, columns, scale, codes + r * columns, d);
    }
}

/* Largest magnitude of a tile, as bits of d. The first NaN or Inf is noted. */
INLINE void largest_body(const void *weight, int64_t rows, int64_t columns, uint32_t *amax, struct report *report,
                         enum dtype d) {
    *amax = largest(weight, rows * columns, d);
    if (*amax >= infinity(d)) find_bad(weight, rows, columns, d, report);
}

INLINE void tensor_body(const void *weight, int64_t rows, int64_t columns, uint32_t amax, uint8_t *codes, void *scale,
                        struct report *report, enum dtype d) {
    encode(weight, rows * columns, write_scale(amax, scale, 0, d, report, 0), codes, d);
}

INLINE void blocks_body(const void *weight, int64_t rows, int64_t columns, uint8_t *codes, void *scales,
                        struct report *report, enum dtype d) {
    int64_t across = (columns + BLOCK - 1) / BLOCK;
    for (int64_t top = 0; top < rows; top += BLOCK) {
        int64_t bottom = top + BLOCK < rows ? top + BLOCK : rows;
        for (int64_t b = 0; b < across; b++) {
            int64_t left = b * BLOCK, width = columns - left < BLOCK ? columns - left : BLOCK;
            uint32_t amax = 0;
            for (int64_t r = top; r < bottom; r++) {
                uint32_t m = largest(at(weight, r * columns + left, d), width, d);
                amax = m > amax ? m : amax;
            }
            if (amax >= infinity(d)) {
                find_bad(weight, rows, columns, d, report);
                return;
            }
            float scale = write_scale(amax, scales, top / BLOCK * across + b, d, report, top);
            for (int64_t r = top; r < bottom; r++)
                encode(at(weight, r * columns + left, d), width, scale, codes + r * columns + left, d);
        }
    }
}

INLINE void scan_body(const void *data, int64_t rows, int64_t columns, struct census *census, enum dtype d) {
    for (int64_t r = 0; r < rows; r++) {
        const void *row = d == E4M3 ? (const char *)data + r * columns : at(data, r * columns, d);
        uint32_t nan = 0, infinite = 0, top = 0;
        if (d == E4M3) {
            const uint8_t *x = row;
            uint8_t union_of_bits = 0;
            for (int64_t i = 0; i < columns; i++) {
                uint8_t m = x[i] & 0x7f;
                nan += m == 0x7f;
                infinite += m == 0x7e;
                union_of_bits |= m;
            }
            top = union_of_bits;
        } else {
            top = largest(row, columns, d);
            if (top >= infinity(d)) {
                for (int64_t i = 0; i < columns; i++) {
                    uint32_t m = element(row, i, d) & ~sign_bit(d);
                    nan += m > infinity(d);
                    infinite += m == infinity(d);
                }
            }
        }
        census->zero_rows += top == 0;
        census->nan += nan;
        census->infinite += infinite;
        if (census->first_row < 0 && (nan || (d != E4M3 && infinite))) {
            uint32_t bad = d == E4M3 ? 0x7f : infinity(d), mask = d == E4M3 ? 0x7f : ~sign_bit(d);
            int64_t i = 0;
            while (((d == E4M3 ? ((const uint8_t *)row)[i] : element(row, i, d)) & mask) < bad) i++;
            census->first_row = r;
            census->first_column = i;
        }
    }
}

/* Value of an E4M3 code. NaN counts as 480; `fp8_scan` is there to find it. */
INLINE float decode(uint32_t code) {
    float size = from_bits((code & 0x7f) << 20) * 0x1p120f;
    return from_bits(bits_of(size) | (code & 0x80) << 24);
}

INLINE float value_of(const void *data, int64_t i, enum dtype d) {
    uint32_t x = element(data, i, d), sign = x & sign_bit(d);
    return from_bits(bits_of(magnitude(x ^ sign, d)) | (d == F32 ? sign : sign << 16));
}

/* One stretch of a row under one scale. Sums run in LANES numbers side by side: a fixed order, and vector code. */
INLINE void compare_stretch(const void *weight, const uint8_t *codes, int64_t n, float scale, int64_t row,
                            int64_t column, struct distance *distance, enum dtype d) {
    float signal[LANES] = {0}, noise[LANES] = {0};
    uint32_t top[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            float w = value_of(weight, i + lane, d), error = w - decode(codes[i + lane]) * scale;
            uint32_t size = bits_of(error) & 0x7fffffffu;
            signal[lane] += w * w;
            noise[lane] += error * error;
            top[lane] = size > top[lane] ? size : top[lane];
        }
    }
    for (; i < n; i++) {
        float w = value_of(weight, i, d), error = w - decode(codes[i]) * scale;
        uint32_t size = bits_of(error) & 0x7fffffffu;
        signal[i % LANES] += w * w;
        noise[i % LANES] += error * error;
        top[i % LANES] = size > top[i % LANES] ? size : top[i % LANES];
    }
    uint32_t most = 0;
    for (int lane = 0; lane < LANES; lane++) {
        distance->signal += signal[lane];
        distance->noise += noise[lane];
        most = top[lane] > most ? top[lane] : most;
    }
    if (from_bits(most) > distance->largest) {
        for (i = 0; i < n - 1; i++) {
            float error = value_of(weight, i, d) - decode(codes[i]) * scale;
            if ((bits_of(error) & 0x7fffffffu) == most) break;
        }
        distance->largest = from_bits(most);
        distance->row = row;
        distance->column = column + i;
    }
}

INLINE void compare_body(const void *weight, int64_t first_row, int64_t rows, int64_t columns, const uint8_t *codes,
                         const float *scales, int64_t high, int64_t wide, struct distance *distance, enum dtype d) {
    int64_t across = (columns + wide - 1) / wide;
    for (int64_t r = 0; r < rows; r++) {
        const float *scale = scales + (first_row + r) / high * across;
        for (int64_t b = 0; b < across; b++) {
            int64_t left = b * wide, width = columns - left < wide ? columns - left : wide;
            /* Single precision sums few enough numbers to stay exact to six digits. */
            for (int64_t done = 0; done < width; done += 4096) {
                int64_t start = r * columns + left + done, n = width - done < 4096 ? width - done : 4096;
                compare_stretch(at(weight, start, d), codes + start, n, scale[b], first_row + r, left + done, distance,
                                d);
            }
        }
    }
}

/* FP32 bits of a value of d, which may be Inf or NaN. E8M0 holds powers of two: 2^(code - 127), and NaN as 255. */
INLINE uint32_t widen(const void *data, int64_t i, enum dtype d) {
    if (d == F32) return ((const uint32_t *)data)[i];
    if (d == E8M0) {
        uint32_t code = ((const uint8_t *)data)[i];
        return code == 255 ? 0x7fc00000u : code ? code << 23 : 0x00400000u;
    }
    uint32_t x = ((const uint16_t *)data)[i];
    if (d == BF16) return x << 16;
    uint32_t m = x & 0x7fff, sign = (x & 0x8000) << 16;
    return sign | (m < 0x7c00 ? bits_of(magnitude(m, F16)) : 0x7f800000u | (m & 0x3ff) << 13);
}

/* The bits of d nearest to a value given as FP32 bits, which must not be NaN; ties to even, Inf beyond the largest. */
INLINE uint32_t narrow(uint32_t x, enum dtype d) {
    if (d == F32) return x;
    if (d == BF16) return (x + 0x7fff + ((x >> 16) & 1)) >> 16;
    uint32_t u = x & 0x7fffffffu, sign = x >> 16 & 0x8000;
    uint32_t normal = ((u + 0xfff + ((u >> 13) & 1)) >> 13) - (112u << 10);
    uint32_t subnormal = bits_of(from_bits(u) + 0.5f) - 0x3f000000u;
    uint32_t m = u < 0x38800000u ? subnormal : normal;
    return sign | (u < 0x477ff000u ? m : 0x7c00u); /* 65520 */
}

/* One stretch of codes under one scale. Returns the largest magnitude written, as bits of d; all ones for NaN. */
INLINE uint32_t decode_stretch(const uint8_t *codes, int64_t n, float scale, void *out, enum dtype d) {
    uint32_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t x = narrow(bits_of(decode(codes[i]) * scale), d), m = x & (d == F32 ? 0x7fffffffu : 0x7fffu);
        m = (codes[i] & 0x7f) == 0x7f ? 0x7fffffffu : m;
        top = m > top ? m : top;
        if (d == F32) ((uint32_t *)out)[i] = x;
        else ((uint16_t *)out)[i] = (uint16_t)x;
    }
    return top;
}

INLINE void decode_body(const uint8_t *codes, int64_t skip, int64_t rows, int64_t columns, const float *scales,
                        int64_t high, int64_t wide, void *out, struct report *report, enum dtype d) {
    int64_t across = (columns + wide - 1) / wide;
    for (int64_t r = 0; r < rows; r++) {
        const float *scale = scales + (skip + r) / high * across;
        for (int64_t b = 0; b < across; b++) {
            int64_t left = b * wide, width = columns - left < wide ? columns - left : wide, start = r * columns + left;
            uint32_t top = decode_stretch(codes + start, width, scale[b], (void *)at(out, start, d), d);
            if (top >= infinity(d) || scale[b] != scale[b]) {
                int64_t i = 0;
                while ((codes[start + i] & 0x7f) != 0x7f &&
                       (widen(out, start + i, d) & 0x7fffffffu) < 0x7f800000u && i < width - 1)
                    i++;
                report->bad_row = r;
                report->bad_column = left + i;
                return;
            }
        }
    }
}

/* Compile `body` for each dtype, for one instruction set. */
#define COMPILE(set, target)                                                                                        \
    target static void rows_##set(const void *w, int d, int64_t r, int64_t c, uint8_t *o, void *s,                  \
                                  struct report *n) {                                                               \
        if (d == BF16) rows_body(w, r, c, o, s, n, BF16);                                                           \
        if (d == F16) rows_body(w, r, c, o, s, n, F16);                                                             \
        if (d == F32) rows_body(w, r, c, o, s, n, F32);                                                             \
    }                                                                                                               \
    target static void largest_##set(const void *w, int d, int64_t r, int64_t c, uint32_t *a, struct report *n) {   \
        if (d == BF16) largest_body(w, r, c, a, n, BF16);                                                           \
        if (d == F16) largest_body(w, r, c, a, n, F16);                                                             \
        if (d == F32) largest_body(w, r, c, a, n, F32);                                                             \
    }                                                                                                               \
    target static void tensor_##set(const void *w, int d, int64_t r, int64_t c, uint32_t a, uint8_t *o, void *s,    \
                                    struct report *n) {                                                             \
        if (d == BF16) tensor_body(w, r, c, a, o, s, n, BF16);                                                      \
        if (d == F16) tensor_body(w, r, c, a, o, s, n, F16);                                                        \
        if (d == F32) tensor_body(w, r, c, a, o, s, n, F32);                                                        \
    }                                                                                                               \
    target static void blocks_##set(const void *w, int d, int64_t r, int64_t c, uint8_t *o, void *s,                \
                                    struct report *n) {                                                             \
        if (d == BF16) blocks_body(w, r, c, o, s, n, BF16);                                                         \
        if (d == F16) blocks_body(w, r, c, o, s, n, F16);                                                           \
        if (d == F32) blocks_body(w, r, c, o, s, n, F32);                                                           \
    }                                                                                                               \
    target static void scan_##set(const void *w, int d, int64_t r, int64_t c, struct census *n) {                   \
        if (d == BF16) scan_body(w, r, c, n, BF16);                                                                 \
        if (d == F16) scan_body(w, r, c, n, F16);                                                                   \
        if (d == F32) scan_body(w, r, c, n, F32);                                                                   \
        if (d == E4M3) scan_body(w, r, c, n, E4M3);                                                                 \
    }                                                                                                               \
    target static void compare_##set(const void *w, int d, int64_t f, int64_t r, int64_t c, const uint8_t *q,       \
                                     const float *s, int64_t high, int64_t wide, struct distance *n) {              \
        if (d == BF16) compare_body(w, f, r, c, q, s, high, wide, n, BF16);                                         \
        if (d == F16) compare_body(w, f, r, c, q, s, high, wide, n, F16);                                           \
        if (d == F32) compare_body(w, f, r, c, q, s, high, wide, n, F32);                                           \
    }                                                                                                               \
    target static void decode_##set(const uint8_t *q, int d, int64_t k, int64_t r, int64_t c, const float *s,       \
                                    int64_t high, int64_t wide, void *o, struct report *n) {                        \
        if (d == BF16) decode_body(q, k, r, c, s, high, wide, o, n, BF16);                                          \
        if (d == F16) decode_body(q, k, r, c, s, high, wide, o, n, F16);                                            \
        if (d == F32) decode_body(q, k, r, c, s, high, wide, o, n, F32);                                            \
    }

COMPILE(plain, )

#if defined(__x86_64__)
COMPILE(avx2, __attribute__((target("avx2"))))
COMPILE(avx512, __attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl"))))
#define CALL(name, ...)                                                                                             \
    do {                                                                                                            \
        if (level >= 2) name##_avx512(__VA_ARGS__);                                                                 \
        else if (level == 1) name##_avx2(__VA_ARGS__);                                                              \
        else name##_plain(__VA_ARGS__);                                                                             \
    } while (0)

/* The highest level that the processor has and the system saves the registers of. */
static int best_level(void) {
    enum { AVX_STATE = 0x6, AVX512_STATE = 0xe6 };
    const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    unsigned a, b, c, d, state, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__ volatile("xgetbv" : "=a"(state), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if ((state & AVX_STATE) != AVX_STATE || !(b & bit_AVX2)) return 0;
    return (state & AVX512_STATE) == AVX512_STATE && (b & avx512) == avx512 ? 2 : 1;
}
#else
#define CALL(name, ...)                                                                                             \
    do {                                                                                                            \
        (void)level;                                                                                                \
        name##_plain(__VA_ARGS__);                                                                                  \
    } while (0)

static int best_level(void) { return 0; }
#endif

/* Number of this interface; whoever loads the library compares it with the one it was written for. */
EXPORT int fp8_interface(void) { return INTERFACE; }

/* The highest `level` that this machine can run: 0 plain C, 1 AVX2, 2 AVX-512. All give the same bytes. */
EXPORT int fp8_level(void) { return best_level(); }

/* weight: [rows, columns] of dtype d; codes: [rows, columns]; scales: [rows] of dtype d. `level`: at
 * most fp8_level(). */
EXPORT void fp8_quantize_rows(const void *weight, int d, int64_t rows, int64_t columns, uint8_t *codes, void *scales,
                              struct report *report, int level) {
    *report = (struct report){-1, -1, 0, 0, -1};
    CALL(rows, weight, d, rows, columns, codes, scales, report);
}

/* For one scale per tensor, which may come in tiles: first the largest magnitude of each, as bits of d without sign,
 * which order as the values do; then, with the largest of all of them, the codes of each and the one scale. */
EXPORT void fp8_largest(const void *weight, int d, int64_t rows, int64_t columns, uint32_t *amax,
                        struct report *report, int level) {
    *report = (struct report){-1, -1, 0, 0, -1};
    CALL(largest, weight, d, rows, columns, amax, report);
}

EXPORT void fp8_quantize_tensor(const void *weight, int d, int64_t rows, int64_t columns, uint32_t amax,
                                uint8_t *codes, void *scale, struct report *report, int level) {
    *report = (struct report){-1, -1, 0, 0, -1};
    CALL(tensor, weight, d, rows, columns, amax, codes, scale, report);
}

/* The same with one scale per 128x128 block. scales: [ceil(rows/128), ceil(columns/128)] of dtype d. */
EXPORT void fp8_quantize_blocks(const void *weight, int d, int64_t rows, int64_t columns, uint8_t *codes, void *scales,
                                struct report *report, int level) {
    *report = (struct report){-1, -1, 0, 0, -1};
    CALL(blocks, weight, d, rows, columns, codes, scales, report);
}

/* data: [rows, columns] of dtype d, which may be E4M3. */
EXPORT void fp8_scan(const void *data, int d, int64_t rows, int64_t columns, struct census *census, int level) {
    *census = (struct census){0, 0, 0, -1, -1};
    CALL(scan, data, d, rows, columns, census);
}

/* Add to `distance` how far the rows from `first_row` on of a weight are from their codes. weight: [rows, columns] of
 * dtype d; codes: [rows, columns] E4M3; scales: all of the tensor, [ceil(all rows / high), ceil(columns / wide)]. */
EXPORT void fp8_compare(const void *weight, int d, int64_t first_row, int64_t rows, int64_t columns,
                        const uint8_t *codes, const float *scales, int64_t high, int64_t wide,
                        struct distance *distance, int level) {
    CALL(compare, weight, d, first_row, rows, columns, codes, scales, high, wide, distance);
}

/* What E4M3 codes [rows, columns] stand for, as dtype d: code x scale in FP32, rounded once. scales: FP32, those of the
 * bands of `high` rows in which the rows lie, the first of them `skip` rows into its band, each of
 * ceil(columns / wide). `bad_row` tells the first number that is NaN, or Inf in d. */
EXPORT void fp8_decode(const uint8_t *codes, int d, int64_t skip, int64_t rows, int64_t columns, const float *scales,
                       int64_t high, int64_t wide, void *out, struct report *report, int level) {
    *report = (struct report){-1, -1, 0, 0, -1};
    CALL(decode, codes, d, skip, rows, columns, scales, high, wide, out, report);
}

/* n values of dtype d, which may be E8M0, as FP32. Exact; NaN stays NaN. */
EXPORT void fp8_widen(const void *data, int d, int64_t n, uint32_t *out) {
    for (int64_t i = 0; i < n; i++) {
        if (d == BF16) out[i] = widen(data, i, BF16);
        if (d == F16) out[i] = widen(data, i, F16);
        if (d == F32) out[i] = widen(data, i, F32);
        if (d == E8M0) out[i] = widen(data, i, E8M0);
    }
}

/* n FP32 values as BF16: to nearest, ties to even, NaN as 0x7fc0. */
EXPORT void fp8_narrow(const uint32_t *data, int64_t n, uint16_t *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = (uint16_t)((data[i] & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : narrow(data[i], BF16));
}
