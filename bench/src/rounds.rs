//! Alternating rounds: what is compared meets the same machine, and one bad second spoils one round.

/// The middle of the figures; NaN of none.
#[must_use]
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    f64::midpoint(sorted[last / 2], sorted[sorted.len() / 2])
}

/// The figure that a tenth of all lie below: how good it gets on a quiet machine.
#[must_use]
pub fn low(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 10).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_tenth_lies_below_low() {
        let figures: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert!((low(&figures) - 10.0).abs() < 1e-9);
    }
}
