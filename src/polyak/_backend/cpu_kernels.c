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

#define SPAN 8192         /* numbers of a span: three vectors of them are at most 192 KiB */
#define LANES 64          /* sums that run side by side within a span, */
#define SHORT (16 * LANES) /* in the type of x for so many numbers, and in double beyond */
#define ALONE (1L << 15)  /* below so many numbers, waking a second thread takes longer than the work */

enum form { MEASURE, SCALE, PLAIN, NESTEROV, ADJUSTED };

struct pass {
  int64_t form, measured, threads, count;
  const int64_t *table; /* count sizes, then as many addresses of every vector */
  int64_t x, u, v;      /* which of these vectors */
  double gamma, mu;
};

static double squares(const REAL *x, int64_t n) {
  double sums[LANES] = {0}, sum = 0;
  int64_t i = 0;
  while (i + LANES <= n) {
    REAL lane[LANES] = {0};
    int64_t end = i + SHORT < n ? i + SHORT : n;
    for (; i + LANES <= end; i += LANES)
      for (int k = 0; k < LANES; k++) lane[k] += x[i + k] * x[i + k];
    for (int k = 0; k < LANES; k++) sums[k] += lane[k];
  }
  for (int k = 0; k < LANES; k++) sum += sums[k];
  for (; i < n; i++) sum += x[i] * x[i];
  return sum;
}

static void scale(REAL *x, int64_t n, REAL a) {
  for (int64_t i = 0; i < n; i++) x[i] *= a;
}

/* x <- x - gamma u */
static void plain(REAL *restrict x, const REAL *restrict u, int64_t n, REAL gamma) {
  for (int64_t i = 0; i < n; i++) x[i] = MULTIPLY_ADD(-gamma, u[i], x[i]);
}

/* v <- mu v - gamma u;  x <- x - gamma u + mu v */
static void nesterov(REAL *restrict x, const REAL *restrict u, REAL *restrict v, int64_t n, REAL gamma, REAL mu) {
  for (int64_t i = 0; i < n; i++) {
    v[i] = MULTIPLY_ADD(-gamma, u[i], mu * v[i]);
    x[i] = MULTIPLY_ADD(mu, v[i], MULTIPLY_ADD(-gamma, u[i], x[i]));
  }
}

/* v <- mu v - u;  x <- x - gamma u + ahead v,  where ahead is gamma mu */
static void adjusted(REAL *restrict x, const REAL *restrict u, REAL *restrict v, int64_t n, REAL gamma, REAL mu,
                     REAL ahead) {
  for (int64_t i = 0; i < n; i++) {
    v[i] = mu * v[i] - u[i];
    x[i] = MULTIPLY_ADD(ahead, v[i], MULTIPLY_ADD(-gamma, u[i], x[i]));
  }
}

static REAL *address(const struct pass *p, int64_t vector, int64_t tensor) {
  return (REAL *)(intptr_t)p->table[vector * p->count + tensor];
}

static double span(const struct pass *p, int64_t tensor, int64_t from, int64_t n) {
  REAL *x = address(p, p->x, tensor) + from, gamma = (REAL)p->gamma, mu = (REAL)p->mu;
  const REAL *u = p->form >= PLAIN ? address(p, p->u, tensor) + from : 0;
  REAL *v = p->form >= NESTEROV ? address(p, p->v, tensor) + from : 0;
  switch (p->form) {
    case SCALE: scale(x, n, gamma); break;
    case PLAIN: plain(x, u, n, gamma); break;
    case NESTEROV: nesterov(x, u, v, n, gamma, mu); break;
    case ADJUSTED: adjusted(x, u, v, n, gamma, mu, (REAL)(p->gamma * p->mu)); break;
  }
  return p->measured ? squares(x, n) : 0;
}

static int64_t spans(int64_t size) { return (size + SPAN - 1) / SPAN; }

/* Take the spans from `first` to `last`, counted through all tensors. */
static void run_of_spans(const struct pass *p, int64_t first, int64_t last, double *sums) {
  int64_t before = 0; /* spans of the tensors that lie before this one */
  for (int64_t tensor = 0; tensor < p->count && before < last; tensor++) {
    int64_t size = p->table[tensor], own = spans(size);
    for (int64_t i = first > before ? first - before : 0; i < own && before + i < last; i++) {
      int64_t from = i * SPAN, left = size - from;
      sums[before + i] = span(p, tensor, from, left < SPAN ? left : SPAN);
    }
    before += own;
  }
}

/* Return the sum of squares of x after the pass as a number of its type, if it is measured; -1 if there is no memory
   for the sums. */
double polyak_pass(const struct pass *p) {
  int64_t total = 0, numbers = 0;
  for (int64_t tensor = 0; tensor < p->count; tensor++) {
    total += spans(p->table[tensor]);
    numbers += p->table[tensor];
  }
  double *sums = malloc((total + 1) * sizeof(double)), sum = 0;
  if (!sums) return -1;
#pragma omp parallel num_threads(p->threads) if (numbers > ALONE)
  {
    int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    run_of_spans(p, total * me / team, total * (me + 1) / team, sums);
  }
  for (int64_t i = 0; i < total; i++) sum += sums[i];
  free(sums);
  return (REAL)sum;
}
