/* Absolute max pooling of teacher channels, and the student's distance to the result; reads each value once.
 *
 * Compiled at first use by native.py: -DS is the student's type, -DT the teacher's, -DLOAD(x) makes an S of a T,
 * -DABS is the absolute value of an S. Sizes and strides count elements, strides in the order image, channel,
 * row, column. `members` is (channels, group), `margin` (channels), `mask` contiguous (images, height, width)
 * or null, `difference` is written unless it is null. Each entry of `sums` is the sum of squares of one unit
 * of work, so that the total does not depend on the number of threads.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 512 /* positions at a time, so that pooled values stay in the first-level cache */

typedef struct {
    int64_t images, channels, group, height, width;
    int64_t student[4], teacher[4], difference[4];
} Shape;

static inline float widened(uint16_t bfloat16) {
    const uint32_t bits = (uint32_t)bfloat16 << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To the larger of target and margin; 0 where both the student and that one are inactive. A NaN counts. */
static inline S distance(S student, S target, S margin) {
    target = (target > margin) | (target != target) ? target : margin;
    return (student <= target) & (target <= 0) ? 0 : student - target;
}

/* One channel of one image, whose columns follow each other in memory. */
static double plane(const S *student, const T *teacher, const int64_t *members, S margin, const uint8_t *mask,
                    S *difference, const Shape *shape) {
    double total = 0;
    int64_t height = shape->height, width = shape->width;
    const int64_t *gaps[] = {shape->student, shape->teacher, shape->difference};
    int dense = 1;
    for (int i = 0; i < 3; i++) dense &= gaps[i][2] == width;
    if (dense) width *= height, height = 1; /* rows without a gap are one long row */
    for (int64_t y = 0; y < height; y++)
        for (int64_t start = 0; start < width; start += BLOCK) {
            const int64_t size = width - start < BLOCK ? width - start : BLOCK;
            const S *s = student + y * shape->student[2] + start;
            const T *t = teacher + y * shape->teacher[2] + start;
            const uint8_t *counts = mask ? mask + y * width + start : 0;
            S pooled[BLOCK], candidates[BLOCK], sum = 0;
            for (int64_t x = 0; x < size; x++) pooled[x] = LOAD(t[members[0] * shape->teacher[1] + x]);
            for (int64_t g = 1; g < shape->group; g++) {
                const T *member = t + members[g] * shape->teacher[1];
                for (int64_t x = 0; x < size; x++) candidates[x] = LOAD(member[x]);
                for (int64_t x = 0; x < size; x++)
                    pooled[x] = ABS(candidates[x]) > ABS(pooled[x]) ? candidates[x] : pooled[x];
            }
            for (int64_t x = 0; x < size; x++) pooled[x] = distance(s[x], pooled[x], margin);
            if (counts)
                for (int64_t x = 0; x < size; x++) pooled[x] = counts[x] ? pooled[x] : 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t x = 0; x < size; x++) sum += pooled[x] * pooled[x];
            if (difference)
                for (int64_t x = 0; x < size; x++) difference[y * shape->difference[2] + start + x] = pooled[x];
            total += sum;
        }
    return total;
}

/* For maps whose columns follow each other. `sums` is (images, channels). */
void planar(const S *student, const T *teacher, const int64_t *members, const S *margin, const uint8_t *mask,
            S *difference, double *sums, const Shape *shape, int threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t n = 0; n < shape->images; n++)
        for (int64_t c = 0; c < shape->channels; c++)
            sums[n * shape->channels + c] = plane(
                student + n * shape->student[0] + c * shape->student[1], teacher + n * shape->teacher[0],
                members + c * shape->group, margin[c], mask ? mask + n * shape->height * shape->width : 0,
                difference ? difference + n * shape->difference[0] + c * shape->difference[1] : 0, shape);
}

static inline int64_t offset(const int64_t *strides, int64_t n, int64_t y, int64_t x) {
    return n * strides[0] + y * strides[2] + x * strides[3];
}

/* For any strides, and best for channels that follow each other. `sums` is (images, height). */
void strided(const S *student, const T *teacher, const int64_t *members, const S *margin, const uint8_t *mask,
             S *difference, double *sums, const Shape *shape, int threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t n = 0; n < shape->images; n++)
        for (int64_t y = 0; y < shape->height; y++) {
            double total = 0;
            for (int64_t x = 0; x < shape->width; x++) {
                const T *t = teacher + offset(shape->teacher, n, y, x);
                const S *s = student + offset(shape->student, n, y, x);
                const int counts = mask ? mask[(n * shape->height + y) * shape->width + x] : 1;
                for (int64_t start = 0; start < shape->channels; start += BLOCK) {
                    const int64_t left = shape->channels - start, size = left < BLOCK ? left : BLOCK;
                    const int64_t *m = members + start * shape->group;
                    S pooled[BLOCK], sum = 0;
                    for (int64_t c = 0; c < size; c++)
                        pooled[c] = LOAD(t[m[c * shape->group] * shape->teacher[1]]);
                    for (int64_t g = 1; g < shape->group; g++)
                        for (int64_t c = 0; c < size; c++) {
                            const S candidate = LOAD(t[m[c * shape->group + g] * shape->teacher[1]]);
                            pooled[c] = ABS(candidate) > ABS(pooled[c]) ? candidate : pooled[c];
                        }
                    for (int64_t c = 0; c < size; c++) {
                        const S value = s[(start + c) * shape->student[1]];
                        pooled[c] = counts ? distance(value, pooled[c], margin[start + c]) : 0;
                    }
#pragma omp simd reduction(+ : sum)
                    for (int64_t c = 0; c < size; c++) sum += pooled[c] * pooled[c];
                    if (difference) {
                        S *d = difference + offset(shape->difference, n, y, x);
                        for (int64_t c = 0; c < size; c++) d[(start + c) * shape->difference[1]] = pooled[c];
                    }
                    total += sum;
                }
            }
            sums[n * shape->height + y] = total;
        }
}
