//! The chart of a run: how many messages wait for their delivery, the periods of faults, and the kills.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use plotters::{
    prelude::{IntoDrawingArea, PathElement, Polygon, Rectangle, SVGBackend, Text},
    style::{
        Color, IntoFont, RGBColor, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};
use tokio::{task::JoinHandle, time::sleep};

use crate::{chaos::Chaos, history::History};

/// Readable on a light and on a dark page.
const TEXT: RGBColor = RGBColor(125, 133, 144);
const WAITING: RGBColor = RGBColor(65, 132, 228);
const FAULTS: RGBColor = RGBColor(205, 138, 30);
const KILL: RGBColor = RGBColor(207, 72, 72);

const SIZE: (u32, u32) = (760, 260);
const LEFT: i32 = 48;
const RIGHT: i32 = 744;
const TOP: i32 = 44;
const BOTTOM: i32 = 224;

const INTERVAL: Duration = Duration::from_millis(250);

#[derive(Default)]
struct Samples {
    /// Seconds since the start, and messages that were sent and not accepted by the webhook yet.
    waiting: Vec<(f64, usize)>,
    /// Begin and end of each period of faults.
    faults: Vec<(f64, f64)>,
    kills: Vec<f64>,
}

pub struct Chart {
    began: Instant,
    samples: Arc<Mutex<Samples>>,
    sampler: JoinHandle<()>,
}

impl Chart {
    pub fn begin(history: &Arc<History>, chaos: &Arc<Chaos>) -> Self {
        let (began, samples) = (Instant::now(), Arc::<Mutex<Samples>>::default());
        let (history, chaos, own) = (history.clone(), chaos.clone(), samples.clone());
        let sampler = tokio::spawn(async move {
            loop {
                let waiting = history.missing(&chaos.accepted()).len();
                own.lock().unwrap().waiting.push((began.elapsed().as_secs_f64(), waiting));
                sleep(INTERVAL).await;
            }
        });
        Self { began, samples, sampler }
    }

    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    pub fn kill(&self) {
        self.samples.lock().unwrap().kills.push(self.now());
    }

    pub fn faults_began(&self) {
        self.samples.lock().unwrap().faults.push((self.now(), f64::INFINITY));
    }

    pub fn faults_ended(&self) {
        let now = self.now();
        if let Some(last) = self.samples.lock().unwrap().faults.last_mut() {
            last.1 = now;
        }
    }

    pub fn draw(self, path: &Path) {
        self.sampler.abort();
        let length = self.now();
        draw(path, length, &self.samples.lock().unwrap());
    }
}

fn style(size: f64, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&TEXT).pos(Pos::new(horizontal, vertical))
}

fn draw(path: &Path, length: f64, samples: &Samples) {
    let most = samples.waiting.iter().map(|(_, waiting)| *waiting).max().unwrap_or(0).max(1);
    let x = |seconds: f64| {
        LEFT + (seconds.min(length) / length * f64::from(RIGHT - LEFT)).round() as i32
    };
    let y = |waiting: usize| {
        BOTTOM - (waiting as f64 / most as f64 * f64::from(BOTTOM - TOP)).round() as i32
    };
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    for (begin, end) in &samples.faults {
        let corners = [(x(*begin), TOP), (x(*end), BOTTOM)];
        area.draw(&Rectangle::new(corners, FAULTS.mix(0.15).filled())).unwrap();
    }
    for kill in &samples.kills {
        let line = vec![(x(*kill), TOP), (x(*kill), BOTTOM)];
        area.draw(&PathElement::new(line, KILL.stroke_width(1))).unwrap();
    }
    let line: Vec<_> =
        samples.waiting.iter().map(|(seconds, waiting)| (x(*seconds), y(*waiting))).collect();
    let mut below = line.clone();
    below.extend([(line.last().map_or(LEFT, |last| last.0), BOTTOM), (LEFT, BOTTOM)]);
    area.draw(&Polygon::new(below, WAITING.mix(0.25).filled())).unwrap();
    area.draw(&PathElement::new(line, WAITING.stroke_width(2))).unwrap();
    let axis = vec![(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)];
    area.draw(&PathElement::new(axis, TEXT.stroke_width(1))).unwrap();
    for waiting in [0, most] {
        let label = style(14.0, HPos::Right, VPos::Center);
        area.draw(&Text::new(waiting.to_string(), (LEFT - 6, y(waiting)), label)).unwrap();
    }
    let minutes = (length / 60.0).floor() as u32;
    for minute in (0..=minutes).step_by((minutes as usize / 6).max(1)) {
        let label = style(14.0, HPos::Center, VPos::Top);
        let at = (x(f64::from(minute) * 60.0), BOTTOM + 8);
        area.draw(&Text::new(format!("{minute} min"), at, label)).unwrap();
    }
    legend(&area);
    area.present().unwrap();
}

fn legend(area: &plotters::drawing::DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) {
    let entries = [
        (LEFT, WAITING.mix(0.6), "messages not delivered yet"),
        (LEFT + 230, FAULTS.mix(0.3), "homeserver and webhook fail"),
        (LEFT + 470, KILL.mix(1.0), "kill -9 of bridge or PostgreSQL"),
    ];
    for (left, color, text) in entries {
        let corners = [(left, 12), (left + 12, 24)];
        area.draw(&Rectangle::new(corners, color.filled())).unwrap();
        let label = style(14.0, HPos::Left, VPos::Center);
        area.draw(&Text::new(text, (left + 18, 18), label)).unwrap();
    }
}
