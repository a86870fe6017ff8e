//! Bar charts that can be read on a light and on a dark page: no background, and mid-tones.

use std::path::Path;

use plotters::{
    prelude::{IntoDrawingArea, Rectangle, SVGBackend, Text},
    style::{
        Color, IntoFont, RGBColor,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::bench::contenders::Contender;

const TEXT: RGBColor = RGBColor(125, 133, 144);
const MEMORY: RGBColor = RGBColor(125, 133, 144);
const SQLITE: RGBColor = RGBColor(205, 138, 30);
const POSTGRES: RGBColor = RGBColor(65, 132, 228);

const WIDTH: i32 = 760;
const LABELS: i32 = 250;
const VALUES: i32 = 110;
const ROW: i32 = 26;
const BAR: i32 = 16;
const TITLE: i32 = 34;

/// Draws one bar for each contender, with its value written at its end.
pub fn bars(path: &Path, title: &str, values: &[(Contender, f64)], label: impl Fn(f64) -> String) {
    let height = TITLE + ROW * i32::try_from(values.len()).unwrap() + 8;
    let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
    let area = SVGBackend::new(path, size).into_drawing_area();
    let font = |size: f64| ("sans-serif", size).into_font().color(&TEXT);
    let heading = font(20.0).pos(Pos::new(HPos::Left, VPos::Top));
    area.draw(&Text::new(title, (8, 6), heading)).unwrap();

    let longest = values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    for (row, (contender, value)) in values.iter().enumerate() {
        let top = TITLE + ROW * i32::try_from(row).unwrap();
        let middle = top + BAR / 2;
        let length = (value / longest * f64::from(WIDTH - LABELS - VALUES)).round() as i32;
        let color = match contender {
            Contender::Memory => MEMORY,
            Contender::Sqlite { .. } => SQLITE,
            Contender::Postgres { .. } | Contender::PlainCalls { .. } => POSTGRES,
        };
        let name = font(16.0).pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(contender.name(), (LABELS - 8, middle), name)).unwrap();
        let corners = [(LABELS, top), (LABELS + length.max(1), top + BAR)];
        area.draw(&Rectangle::new(corners, color.filled())).unwrap();
        let number = font(16.0).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(label(*value), (LABELS + length + 8, middle), number)).unwrap();
    }
    area.present().unwrap();
}
