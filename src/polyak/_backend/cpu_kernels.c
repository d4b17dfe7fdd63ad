/* fused=True on the CPU: one pass over the memory, for all tensors of a type (REAL is float or double).

   Vectors are cut into spans. Every span is moved and measured while it lies in the cache, and leaves one sum of
   squares; the sums are added in order, so that no result depends on the number of threads. */

#include <stdint.h>
#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif

/* The roundings of torch's own operations, which fuse a multiplication with the addition after it where the processor
   can; -ffp-contract=off keeps the compiler from fusing others. */
#if defined(__FMA__) || defined(__aarch64__)
#define MULTIPLY_ADD(a, b, c) ((REAL)(sizeof(REAL) == 4 ? __builtin_fmaf(a, b, c) : __builtin_fma(a, b, c)))
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline)) /* so that a loop is compiled for every constant argument */
#else
#define INLINE static inline
#endif
#define ROOT(a) ((REAL)(sizeof(REAL) == 4 ? __builtin_sqrtf(a) : __builtin_sqrt(a)))

#define SPAN 8192         /* numbers of a span: three vectors of them are at most 192 KiB */
#define LANES 64          /* sums that run side by side within a span, */
#define FEW 16            /* or so many, where four sums are added at once, */
#define SHORT (16 * LANES) /* in the type of x for so many numbers, and in double beyond */
#define ALONE (1L << 15)  /* below so many numbers, waking a second thread takes longer than the work */
#define SUMS 4
#define AHEAD 512 /* bytes by which memory is asked for before it is used, where averages are read beside x and g */

#if defined(__GNUC__)
#define FETCH(a) __builtin_prefetch((const char *)(a) + AHEAD)
#else
#define FETCH(a) (void)(a)
#endif

enum form { MEASURE, SCALE, PLAIN, NESTEROV, ADJUSTED, HEAVY_BALL, TRIAL, STORE };

struct pass {
  int64_t form, measured, threads, count;
  const int64_t *table;  /* count sizes, then as many addresses of every vector */
  int64_t x, u, v, d, s; /* which of these vectors; no average d and no averaged squares s if 0 */
  double gamma, mu, decay, beta, beta2, root, eps;
  double more[SUMS - 1]; /* what a trial measures beside the sum that a pass returns */
};

INLINE void fetch(const REAL *a, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / (int64_t)sizeof(REAL)) FETCH(a + i);
}

static double squares(const REAL *x, int64_t n) {
  double sums[LANES] = {0}, sum = 0;
  int64_t i = 0;
  while (i + LANES <= n) {
    REAL lane[LANES] = {0};
    int64_t end = i + SHORT < n ? i + SHORT : n;
    for (; i + LANES <= end; i += LANES) {
      for (int k = 0; k < LANES; k++) lane[k] += x[i + k] * x[i + k];
    }
    for (int k = 0; k < LANES; k++) sums[k] += lane[k];
  }
  for (int k = 0; k < LANES; k++) sum += sums[k];
  for (; i < n; i++) sum += x[i] * x[i];
  return sum;
}

static void scale(REAL *x, int64_t n, REAL a) {
  for (int64_t i = 0; i < n; i++) x[i] *= a;
}

/* The average of g in the two ways in which torch computes it, d + w (g - d) for w < 1/2 and else g + (w - 1) (g - d):
   base is d or g, and c is w or w - 1. Then beta2 s + w2 g^2. */
INLINE REAL average(REAL d, REAL g, REAL base, REAL c) { return MULTIPLY_ADD(c, g - d, base); }
INLINE REAL average_square(REAL s, REAL g, REAL beta2, REAL w2) { return MULTIPLY_ADD(w2 * g, g, beta2 * s); }

/* Move x by the form, after a decay, along u, or along its average d, divided by eps + sqrt(s) / root if there is s:
   PLAIN       x <- x - gamma u
   NESTEROV    v <- mu v - gamma u;  x <- x - gamma u + mu v
   ADJUSTED    v <- mu v - u;  x <- x - gamma u + gamma mu v
   HEAVY_BALL  v <- mu v - gamma u;  x <- x + v
   STORE       only the averages are stored */
INLINE void move_few(const struct pass *p, REAL *restrict x, const REAL *restrict u, REAL *restrict v, REAL *restrict d,
                     REAL *restrict s, int64_t n, int form, int averaged, int divided) {
  const REAL gamma = (REAL)p->gamma, mu = (REAL)p->mu, ahead = (REAL)(p->gamma * p->mu), decay = (REAL)p->decay;
  const REAL w = (REAL)(1 - p->beta), c = w < (REAL)0.5 ? w : w - 1, beta2 = (REAL)p->beta2, w2 = (REAL)(1 - p->beta2);
  const REAL root = (REAL)p->root, eps = (REAL)p->eps, *base = w < (REAL)0.5 ? d : u;
  for (int64_t i = 0; i < n; i++) {
    REAL step = u[i], denominator = 1;
    if (divided) {
      s[i] = average_square(s[i], step, beta2, w2);
      denominator = ROOT(s[i]) / root + eps;
    }
    if (averaged) step = d[i] = average(d[i], step, base[i], c);
    if (form == STORE) continue;
    if (form == PLAIN) {
      x[i] = divided ? decay * x[i] + -gamma * step / denominator : MULTIPLY_ADD(-gamma, step, decay * x[i]);
      continue;
    }
    if (divided) step /= denominator;
    v[i] = form == ADJUSTED ? mu * v[i] - step : MULTIPLY_ADD(-gamma, step, mu * v[i]);
    if (form == HEAVY_BALL)
      x[i] = decay * x[i] + v[i];
    else
      x[i] = MULTIPLY_ADD(form == NESTEROV ? mu : ahead, v[i], MULTIPLY_ADD(-gamma, step, decay * x[i]));
  }
}

INLINE void move(const struct pass *p, REAL *x, const REAL *u, REAL *v, REAL *d, REAL *s, int64_t n, int form,
                 int averaged, int divided) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    if (averaged || divided) {
      if (form != STORE) fetch(x + i, LANES);
      fetch(u + i, LANES);
      if (form != STORE && form != PLAIN) fetch(v + i, LANES);
      if (averaged) fetch(d + i, LANES);
      if (divided) fetch(s + i, LANES);
    }
    move_few(p, x + i, u + i, v + i, d + i, s + i, LANES, form, averaged, divided);
  }
  move_few(p, x + i, u + i, v + i, d + i, s + i, n - i, form, averaged, divided);
}

/* Add up <u, u> in the norm of the divided direction u, <g, g>, <g, x> and <u, x>, for the averages as a move will
   store them. */
INLINE void trial(const struct pass *p, const REAL *x, const REAL *g, const REAL *d, const REAL *s, int64_t n,
                  double *sums, int averaged, int divided) {
  const int with_x = averaged || !divided; /* no other condition: the loop would not be vectorized */
  const REAL w = (REAL)(1 - p->beta), c = w < (REAL)0.5 ? w : w - 1, beta2 = (REAL)p->beta2, w2 = (REAL)(1 - p->beta2);
  const REAL root = (REAL)p->root, eps = (REAL)p->eps, *base = w < (REAL)0.5 ? d : g;
  for (int64_t i = 0; i < n;) {
    REAL lane[SUMS][FEW] = {{0}};
    int64_t end = i + SHORT < n ? i + SHORT : n;
    while (i < end) {
      int few = end - i < FEW ? (int)(end - i) : FEW;
#define ADD(K)                                                                                     \
  for (int k = 0; k < K; k++) {                                                                      \
    REAL gradient = g[i + k], u = averaged ? average(d[i + k], gradient, base[i + k], c) : gradient, square = u * u; \
    if (divided) square = u * (u / (ROOT(average_square(s[i + k], gradient, beta2, w2)) / root + eps)); \
    lane[0][k] += square;                                                                            \
    lane[1][k] += gradient * gradient;                                                               \
    if (with_x) lane[2][k] += gradient * x[i + k], lane[3][k] += u * x[i + k];                  \
  }
      if (few == FEW) {
        fetch(g + i, FEW);
        if (with_x) fetch(x + i, FEW);
        if (averaged) fetch(d + i, FEW);
        if (divided) fetch(s + i, FEW);
        ADD(FEW)
      } else {
        ADD(few)
      }
      i += few;
    }
    for (int sum = 0; sum < SUMS; sum++)
      for (int k = 0; k < FEW; k++) sums[sum] += lane[sum][k];
  }
}

static REAL *address(const struct pass *p, int64_t vector, int64_t tensor) {
  return (REAL *)(intptr_t)p->table[vector * p->count + tensor];
}

static void span(const struct pass *p, int64_t tensor, int64_t from, int64_t n, double *sums) {
  REAL *x = address(p, p->x, tensor) + from, *u = address(p, p->u, tensor) + from, *v = address(p, p->v, tensor) + from;
  REAL *d = address(p, p->d, tensor) + from, *s = address(p, p->s, tensor) + from;
#define MOVE(FORM, AVERAGED, DIVIDED) move(p, x, u, v, d, s, n, FORM, AVERAGED, DIVIDED)
#define TRIAL_OF(AVERAGED, DIVIDED) trial(p, x, u, d, s, n, sums, AVERAGED, DIVIDED)
  switch (p->form) {
    case SCALE: scale(x, n, (REAL)p->gamma); break;
    case PLAIN:
      p->s ? p->d ? MOVE(PLAIN, 1, 1) : MOVE(PLAIN, 0, 1) : p->d ? MOVE(PLAIN, 1, 0) : MOVE(PLAIN, 0, 0);
      break;
    case NESTEROV: MOVE(NESTEROV, 0, 0); break;
    case ADJUSTED: MOVE(ADJUSTED, 0, 0); break;
    case HEAVY_BALL: p->s ? MOVE(HEAVY_BALL, 0, 1) : MOVE(HEAVY_BALL, 0, 0); break;
    case STORE: MOVE(STORE, p->d != 0, p->s != 0); break;
    case TRIAL: p->s ? p->d ? TRIAL_OF(1, 1) : TRIAL_OF(0, 1) : p->d ? TRIAL_OF(1, 0) : TRIAL_OF(0, 0); return;
  }
  sums[0] = p->measured ? squares(x, n) : 0;
}

static int64_t spans(int64_t size) { return (size + SPAN - 1) / SPAN; }

/* Take the spans from `first` to `last`, counted through all tensors; in a move the last one first, since a cache may
   still hold what was measured last. */
static void run_of_spans(const struct pass *p, int64_t first, int64_t last, int64_t total, double *sums) {
  const int back = p->form != MEASURE && p->form != TRIAL;
  int64_t before = back ? total : 0; /* spans of the tensors that lie before this one */
  for (int64_t k = 0; k < p->count; k++) {
    int64_t tensor = back ? p->count - 1 - k : k, size = p->table[tensor], own = spans(size);
    if (back) before -= own;
    int64_t low = first > before ? first - before : 0, high = last - before < own ? last - before : own;
    for (int64_t j = low; j < high; j++) {
      int64_t i = back ? low + high - 1 - j : j, from = i * SPAN, left = size - from;
      span(p, tensor, from, left < SPAN ? left : SPAN, sums + SUMS * (before + i));
    }
    if (!back) before += own;
  }
}

/* Return the first sum as a number of the vectors' type: that of the squares of x after the pass, if it is measured, or
   that of a trial, which leaves the others in the pass; -1 if there is no memory for the sums. */
double polyak_pass(struct pass *p) {
  int64_t total = 0, numbers = 0;
  for (int64_t tensor = 0; tensor < p->count; tensor++) {
    total += spans(p->table[tensor]);
    numbers += p->table[tensor];
  }
  double *sums = calloc(total + 1, SUMS * sizeof(double)), sum[SUMS] = {0};
  if (!sums) return -1;
#pragma omp parallel num_threads(p->threads) if (numbers > ALONE)
  {
    int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    run_of_spans(p, total * me / team, total * (me + 1) / team, total, sums);
  }
  for (int64_t i = 0; i < SUMS * total; i++) sum[i % SUMS] += sums[i];
  free(sums);
  for (int i = 1; i < SUMS; i++) p->more[i - 1] = (REAL)sum[i];
  return (REAL)sum[0];
}
