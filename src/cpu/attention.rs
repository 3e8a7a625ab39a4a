//! Attention and its gradient, in blocks of queries or keys: never more than one block of scores in memory.
//!
//! Forward, for a block of queries and each head: S = Q K^T / sqrt(d), P = exp(S - max), O = P V / sum. The
//! scores are kept transposed, `[keys, queries]`: then the library needs no packed copy of K or V for every
//! block, and maxima and sums run along vectors of queries.
//! Backward, with D = rowsum(dO * O) and P = exp(S - lse) computed again: dP = dO V^T, dS = P (dP - D) / sqrt(d).
//! A block of queries gives its rows dQ = dS K; a block of keys, from the transposed scores, its rows
//! dV = P^T dO and dK = dS^T Q. So every row is written by one task and no sum crosses tasks.

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, gemm, packed};
use super::loops::{blocks, sum2_f64, vectorised};
use crate::ir::Attending;
use crate::tensor::Real;

/// Scores that one task of the forward pass holds, about; those of the backward pass hold four times as many,
/// since the library packs an operand again for every block there.
const SCORES: usize = 1 << 18;
/// Keys whose exponentials are added up before the sum joins the others: rounding grows with the square
/// root of the longer of the two chains.
const SUMMED: usize = 64;

/// Extents of the operands: q, o `[n, t, c]`; k, v `[n, u, c]`; c = heads d. Of q, k and v some may lie side by
/// side in the channels of one tensor.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub t: usize,
    pub u: usize,
    pub c: usize,
    pub heads: usize,
    pub causal: bool,
}

impl Sizes {
    fn d(&self) -> usize {
        self.c / self.heads
    }

    fn scale<T: Real>(&self) -> T {
        T::from_f64(1.0 / (self.d() as f64).sqrt())
    }

    /// Head `h` of tokens `first .. first + count` of an image of `tokens` tokens.
    fn head<'a, T>(
        &self,
        x: Tokens<'a, T>,
        (image, tokens): (usize, usize),
        (first, count): (usize, usize),
        h: usize,
    ) -> Mat<'a, T> {
        Mat::new(&x.data[(image * tokens + first) * x.row + h * self.d()..], count, self.d(), x.row)
    }
}

/// Tokens that begin `row` elements apart.
#[derive(Clone, Copy)]
pub struct Tokens<'a, T> {
    pub data: &'a [T],
    pub row: usize,
}

/// `o [n, t, c]` and `lse [n, heads, t]` of q, k and v.
pub fn attention<T: Real>(sizes: Sizes, [q, k, v]: [Tokens<'_, T>; 3], o: &mut [T], lse: &mut [T]) {
    let Sizes { t, u, c, heads, causal } = sizes;
    let block = block_rows(t, u);
    let tasks = row_blocks(o, t * c, block * c);
    // Log-sum-exp of a block of queries, head by head, and its place.
    let sums: Vec<_> = tasks
        .into_par_iter()
        .map_init(<[Vec<T>; 2]>::default, |[scores, transposed], (image, i, o)| {
            let (first, count, d) = (i * block, o.len() / c, sizes.d());
            let keys = if causal { u.min(first + count) } else { u };
            let mut lse = vec![T::ZERO; heads * count];
            scores.resize(keys * count, T::ZERO);
            transposed.resize(d * count, T::ZERO);
            for (h, lse) in lse.chunks_mut(count).enumerate() {
                let q = sizes.head(q, (image, t), (first, count), h);
                let k = sizes.head(k, (image, u), (0, keys), h);
                let v = sizes.head(v, (image, u), (0, keys), h);
                gemm(MatMut::new(scores, keys, count, count), false, sizes.scale(), k, q.t());
                if causal {
                    for (j, row) in scores.chunks_mut(count).enumerate().skip(first + 1) {
                        row[..(j - first).min(count)].fill(-T::INFINITY);
                    }
                }
                let sums = exponentials(scores, lse);
                let p = Mat::new(scores, keys, count, count);
                gemm(MatMut::new(transposed, d, count, count), false, T::ONE, v.t(), p);
                for (i, (row, &sum)) in o.chunks_mut(c).zip(&sums).enumerate() {
                    for (e, out) in row[h * d..(h + 1) * d].iter_mut().enumerate() {
                        *out = transposed[e * count + i] / sum;
                    }
                }
                lse.iter_mut().zip(&sums).for_each(|(lse, sum)| *lse += sum.ln());
            }
            (image, first, count, lse)
        })
        .collect();
    for (image, first, count, sums) in sums {
        for (h, sums) in sums.chunks(count).enumerate() {
            lse[(image * heads + h) * t + first..][..count].copy_from_slice(sums);
        }
    }
}

/// What [`attention_bwd`] reads.
pub struct Saved<'a, T> {
    pub q: Tokens<'a, T>,
    pub k: Tokens<'a, T>,
    pub v: Tokens<'a, T>,
    pub o: &'a [T],
    pub lse: &'a [T],
    pub d_o: &'a [T],
}

/// dq, dk and dv: where [`Attending`] has q, k and v, in as many tensors.
pub fn attention_bwd<T: Real>(
    sizes: Sizes,
    saved: &Saved<T>,
    attending: &Attending,
    gradients: &mut [&mut [T]],
) {
    let Sizes { t, u, c, heads, causal } = sizes;
    let &Saved { q, k, v, o, lse, d_o } = saved;
    let scale = sizes.scale::<T>();
    let [(of_queries, dq_at), (of_keys, dk_at), (of_values, dv_at)] = attending.at;

    // D, laid out like lse.
    let mut delta = vec![T::ZERO; lse.len()];
    blocks(&mut delta, t, |first, delta| {
        for (i, delta) in delta.chunks_mut(t).enumerate() {
            let (image, h) = ((first + i) / heads, (first + i) % heads);
            for (row, delta) in delta.iter_mut().enumerate() {
                let at = (image * t + row) * c + h * sizes.d();
                let (o, d_o) = (&o[at..at + sizes.d()], &d_o[at..at + sizes.d()]);
                *delta = T::from_f64(sum2_f64(o, d_o, |o, d_o| o.to_f64() * d_o.to_f64()));
            }
        }
    });

    let d_out = Tokens { data: d_o, row: c };
    let (block, row) = (block_rows(t, u / 2), attending.row(of_queries));
    let tasks = row_blocks(gradients[of_queries], t * row, block * row);
    tasks.into_par_iter().for_each_init(Vec::new, |scratch, (image, i, rows)| {
        let (first, count) = (i * block, rows.len() / row);
        let keys = if causal { u.min(first + count) } else { u };
        scratch.resize(2 * count * keys, T::ZERO);
        let (p, dp) = scratch.split_at_mut(count * keys);
        for h in 0..heads {
            let (own, all) = ((first, count), (0, keys));
            let key = sizes.head(k, (image, u), all, h);
            let value = sizes.head(v, (image, u), all, h);
            let query = sizes.head(q, (image, t), own, h);
            let d_out = sizes.head(d_out, (image, t), own, h);
            gemm(MatMut::new(p, count, keys, keys), false, scale, query, key.t());
            gemm(MatMut::new(dp, count, keys, keys), false, T::ONE, d_out, value.t());
            let at = (image * heads + h) * t + first;
            for (i, (p, dp)) in p.chunks_mut(keys).zip(dp.chunks(keys)).enumerate() {
                let seen = if causal { keys.min(first + i + 1) } else { keys };
                let (lse, delta) = (lse[at + i], delta[at + i]);
                p[seen..].fill(T::ZERO);
                vectorised(
                    #[inline(always)]
                    || {
                        for (p, &dp) in p[..seen].iter_mut().zip(dp) {
                            *p = (*p - lse).exp() * (dp - delta) * scale;
                        }
                    },
                );
            }
            let dq = MatMut::new(&mut rows[dq_at + h * sizes.d()..], count, sizes.d(), row);
            gemm(dq, false, T::ONE, Mat::new(p, count, keys, keys), key);
        }
    });

    let (block, row) = (block_rows(u, t / 2), attending.row(of_keys));
    let mut tensors = gradients[of_keys..].iter_mut().map(|tensor| row_blocks(tensor, u * row, block * row));
    let keys = tensors.next().unwrap_or_default().into_iter();
    // None where dv lies beside dk.
    let mut values = tensors.next().into_iter().flatten();
    let tasks = keys.map(|(image, i, rows)| (image, i, rows, values.next().map(|(_, _, rows)| rows)));
    let tasks: Vec<_> = tasks.collect();
    debug_assert!(of_values <= of_keys + 1, "dv is beside dk or in the tensor behind it");
    tasks.into_par_iter().for_each_init(Vec::new, |scratch, (image, i, rows, mut others)| {
        let (first, count) = (i * block, rows.len() / row);
        // Queries before the first key see none of this block.
        let skipped = if causal { first.min(t) } else { 0 };
        let queries = t - skipped;
        if queries == 0 {
            for rows in [Some(&mut *rows), others].into_iter().flatten() {
                rows.chunks_mut(row).for_each(|token| token[dk_at.min(dv_at)..].fill(T::ZERO));
            }
            return;
        }
        scratch.resize(2 * count * queries, T::ZERO);
        let (p, dp) = scratch.split_at_mut(count * queries);
        for h in 0..heads {
            let (own, all) = ((first, count), (skipped, queries));
            let key = sizes.head(k, (image, u), own, h);
            let value = sizes.head(v, (image, u), own, h);
            let query = sizes.head(q, (image, t), all, h);
            let d_out = sizes.head(d_out, (image, t), all, h);
            gemm(MatMut::new(p, count, queries, queries), false, scale, key, query.t());
            gemm(MatMut::new(dp, count, queries, queries), false, T::ONE, value, d_out.t());
            let at = (image * heads + h) * t + skipped;
            let (lse, delta) = (&lse[at..at + queries], &delta[at..at + queries]);
            for (i, (p, dp)) in p.chunks_mut(queries).zip(dp.chunks_mut(queries)).enumerate() {
                let blind = if causal { (first + i - skipped).min(queries) } else { 0 };
                p[..blind].fill(T::ZERO);
                dp[..blind].fill(T::ZERO);
                let (p, dp) = (&mut p[blind..], &mut dp[blind..]);
                let (lse, delta) = (&lse[blind..], &delta[blind..]);
                vectorised(
                    #[inline(always)]
                    || {
                        for ((p, dp), (&lse, &delta)) in p.iter_mut().zip(dp).zip(lse.iter().zip(delta)) {
                            *p = (*p - lse).exp();
                            *dp = *p * (*dp - delta) * scale;
                        }
                    },
                );
            }
            let (p, ds) = (Mat::new(p, count, queries, queries), Mat::new(dp, count, queries, queries));
            let dk = MatMut::new(&mut rows[dk_at + h * sizes.d()..], count, sizes.d(), row);
            gemm(dk, false, T::ONE, ds, query);
            let rows = others.as_deref_mut().unwrap_or(&mut *rows);
            let dv = MatMut::new(&mut rows[dv_at + h * sizes.d()..], count, sizes.d(), row);
            gemm(dv, false, T::ONE, p, d_out);
        }
    });
}

/// Elements that [`attention`] of `n` images allocates at most.
pub fn scratch(n: usize, sizes: Sizes, threads: usize) -> usize {
    let Sizes { t, u, heads, .. } = sizes;
    let block = block_rows(t, u);
    let (rows, d) = (block.min(t), sizes.d());
    let task = rows * (u + d + 2) + packed(u, rows, d).max(packed(d, rows, u));
    threads.min(n * t.div_ceil(block)) * task + n * heads * t
}

/// Elements that [`attention_bwd`] of `n` images allocates at most.
pub fn scratch_bwd(n: usize, sizes: Sizes, threads: usize) -> usize {
    let Sizes { t, u, heads, .. } = sizes;
    let task = |own: usize, all: usize| {
        let rows = block_rows(own, all / 2).min(own);
        2 * rows * all + packed(rows, all, sizes.d()).max(packed(rows, sizes.d(), all))
    };
    threads * task(t, u).max(task(u, t)) + n * heads * t
}

/// Rows of a task whose scores have `width` columns.
fn block_rows(rows: usize, width: usize) -> usize {
    // Four tasks an image at least, as long as a task keeps 32 rows.
    (SCORES / width.max(1)).clamp(16, 256).min(rows.div_ceil(4).max(32))
}

/// The rows of every image in blocks: (image, index of the block, elements).
fn row_blocks<T>(out: &mut [T], image: usize, block: usize) -> Vec<(usize, usize, &mut [T])> {
    let images = out.chunks_mut(image.max(1)).enumerate();
    images.flat_map(|(n, out)| out.chunks_mut(block).enumerate().map(move |(i, rows)| (n, i, rows))).collect()
}

/// exp(S - max) of transposed scores `[keys, queries]` in place; `most` becomes every query's maximum.
/// Returns the sums over the keys. A score that is not a number makes its query's sum not a number.
fn exponentials<T: Real>(scores: &mut [T], most: &mut [T]) -> Vec<T> {
    let queries = most.len();
    let (mut sums, mut partial) = (vec![T::ZERO; queries], vec![T::ZERO; queries]);
    vectorised(
        #[inline(always)]
        || {
            most.fill(-T::INFINITY);
            for row in scores.chunks_exact(queries) {
                most.iter_mut().zip(row).for_each(|(most, &s)| *most = if s > *most { s } else { *most });
            }
            for rows in scores.chunks_mut(SUMMED * queries) {
                partial.fill(T::ZERO);
                for row in rows.chunks_exact_mut(queries) {
                    for ((p, &most), sum) in row.iter_mut().zip(&*most).zip(&mut partial) {
                        *p = (*p - most).exp();
                        *sum += *p;
                    }
                }
                sums.iter_mut().zip(&partial).for_each(|(sum, &partial)| *sum += partial);
            }
        },
    );
    sums
}
