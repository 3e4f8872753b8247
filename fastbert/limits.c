/* The hardware's own limits: products in registers and reads from memory, on N threads.
 *
 * limits KIND THREADS MILLISECONDS, KIND one of fp32 bf16 int8 read. Prints operations (a multiply
 * and an add are two) or bytes per second, the best of several short spells. Each loop keeps
 * CHAINS independent accumulators, more than the product of latency (4) and throughput (2) of
 * any of these instructions, so that only the number of multiplier units counts.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CHAINS = 20, INNER = 20000, SPELLS = 15 };
static const size_t BYTES = (size_t)256 << 20; /* of each thread, far beyond any last-level cache */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef double (*spell_fn)(void* memory); /* work done in one spell: operations or bytes */

#ifdef __AVX512F__
static double fp32(void* memory) {
    __m512 a[CHAINS], x = _mm512_set1_ps(1.0f), y = _mm512_set1_ps(1e-9f);
    for (int c = 0; c < CHAINS; ++c) a[c] = _mm512_set1_ps((float)c);
    for (int i = 0; i < INNER; ++i) {
#pragma GCC unroll 20
        for (int c = 0; c < CHAINS; ++c) a[c] = _mm512_fmadd_ps(x, y, a[c]);
        __asm__ volatile("" : "+x"(x), "+x"(y));
    }
    for (int c = 1; c < CHAINS; ++c) a[0] = _mm512_add_ps(a[0], a[c]);
    _mm512_storeu_ps(memory, a[0]);
    return 2.0 * 16 * CHAINS * INNER;
}
#else
static double fp32(void* memory) {
    __m256 a[CHAINS], x = _mm256_set1_ps(1.0f), y = _mm256_set1_ps(1e-9f);
    for (int c = 0; c < CHAINS; ++c) a[c] = _mm256_set1_ps((float)c);
    for (int i = 0; i < INNER; ++i) {
#pragma GCC unroll 20
        for (int c = 0; c < CHAINS; ++c) a[c] = _mm256_fmadd_ps(x, y, a[c]);
        __asm__ volatile("" : "+x"(x), "+x"(y));
    }
    for (int c = 1; c < CHAINS; ++c) a[0] = _mm256_add_ps(a[0], a[c]);
    _mm256_storeu_ps(memory, a[0]);
    return 2.0 * 8 * CHAINS * INNER;
}
#endif

#ifdef __AVX512BF16__
static double bf16(void* memory) {
    __m512 a[CHAINS];
    __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f80), y = (__m512bh)_mm512_set1_epi16(0x3000);
    for (int c = 0; c < CHAINS; ++c) a[c] = _mm512_set1_ps((float)c);
    for (int i = 0; i < INNER; ++i) {
#pragma GCC unroll 20
        for (int c = 0; c < CHAINS; ++c) a[c] = _mm512_dpbf16_ps(a[c], x, y);
        __asm__ volatile("" : "+x"(x), "+x"(y));
    }
    for (int c = 1; c < CHAINS; ++c) a[0] = _mm512_add_ps(a[0], a[c]);
    _mm512_storeu_ps(memory, a[0]);
    return 2.0 * 32 * CHAINS * INNER;
}
#endif

#ifdef __AVX512VNNI__
static double int8(void* memory) {
    __m512i a[CHAINS], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(-2);
    for (int c = 0; c < CHAINS; ++c) a[c] = _mm512_set1_epi32(c);
    for (int i = 0; i < INNER; ++i) {
#pragma GCC unroll 20
        for (int c = 0; c < CHAINS; ++c) a[c] = _mm512_dpbusd_epi32(a[c], x, y);
        __asm__ volatile("" : "+x"(x), "+x"(y));
    }
    for (int c = 1; c < CHAINS; ++c) a[0] = _mm512_add_epi32(a[0], a[c]);
    _mm512_storeu_si512(memory, a[0]);
    return 2.0 * 64 * CHAINS * INNER;
}
#endif

static double read_memory(void* memory) {
    const __m256i* p = memory;
    __m256i a[8];
    for (int c = 0; c < 8; ++c) a[c] = _mm256_setzero_si256();
    for (size_t i = 0; i < BYTES / 32; i += 8) {
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) a[c] = _mm256_xor_si256(a[c], _mm256_load_si256(p + i + c));
    }
    for (int c = 1; c < 8; ++c) a[0] = _mm256_xor_si256(a[0], a[c]);
    __asm__ volatile("" : : "x"(a[0]));
    return (double)BYTES;
}

struct job {
    spell_fn spell;
    void* memory;
    double seconds, begin, end, done;
    pthread_barrier_t* start;
};

static void* worker(void* argument) {
    struct job* job = argument;
    job->spell(job->memory);
    pthread_barrier_wait(job->start);
    job->begin = job->end = now();
    job->done = 0;
    while (job->end - job->begin < job->seconds) {
        job->done += job->spell(job->memory);
        job->end = now();
    }
    return NULL;
}

static spell_fn find(const char* kind) {
    if (!strcmp(kind, "fp32")) return fp32;
#ifdef __AVX512BF16__
    if (!strcmp(kind, "bf16")) return bf16;
#endif
#ifdef __AVX512VNNI__
    if (!strcmp(kind, "int8")) return int8;
#endif
    if (!strcmp(kind, "read")) return read_memory;
    return NULL;
}

int main(int argc, char** argv) {
    if (argc != 4) return fprintf(stderr, "limits KIND THREADS MILLISECONDS\n"), 2;
    const spell_fn spell = find(argv[1]);
    const int threads = atoi(argv[2]);
    if (!spell) return fprintf(stderr, "this CPU has no %s dot product\n", argv[1]), 3;
    if (threads < 1 || threads > 1024) return fprintf(stderr, "threads: 1 to 1024\n"), 2;
    struct job* jobs = calloc((size_t)threads, sizeof *jobs);
    pthread_t* ids = calloc((size_t)threads, sizeof *ids);
    double best = 0;
    for (int t = 0; t < threads; ++t) {
        const size_t size = spell == read_memory ? BYTES : 4096;
        jobs[t].memory = aligned_alloc(4096, size);
        if (!jobs[t].memory) return fprintf(stderr, "out of memory\n"), 2;
        memset(jobs[t].memory, 1, size); /* maps every page */
    }
    for (int s = 0; s < SPELLS; ++s) {
        pthread_barrier_t start;
        pthread_barrier_init(&start, NULL, (unsigned)threads);
        for (int t = 0; t < threads; ++t) {
            jobs[t].spell = spell;
            jobs[t].seconds = 1e-3 * atof(argv[3]);
            jobs[t].start = &start;
            if (pthread_create(&ids[t], NULL, worker, &jobs[t])) return 2;
        }
        double done = 0, begin = 1e300, end = 0;
        for (int t = 0; t < threads; ++t) {
            pthread_join(ids[t], NULL);
            done += jobs[t].done;
            begin = jobs[t].begin < begin ? jobs[t].begin : begin;
            end = jobs[t].end > end ? jobs[t].end : end;
        }
        pthread_barrier_destroy(&start);
        const double rate = done / (end - begin);
        best = rate > best ? rate : best;
    }
    printf("%.6g\n", best);
    return 0;
}
