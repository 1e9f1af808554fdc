//! Small SVG pictures that stand on their own, on light and on dark pages.

use std::fmt::Write as _;

/// Colours by the reader's theme: what is drawn names a class.
const STYLE: &str = "\
.paper{fill:#fff}.ink{fill:#37352f}.dim{fill:#787774}.rule{stroke:#e3e2e0}.mark{stroke:#37352f;stroke-dasharray:4 3}\
.a{fill:#0b6e99;stroke:#0b6e99}.b{fill:#d9730d;stroke:#d9730d}.c{fill:#6940a5;stroke:#6940a5}.d{fill:#0f7b6c;stroke:#0f7b6c}\
rect.a,rect.b,rect.c,rect.d{stroke:none}polyline{fill:none!important;stroke-width:2.5}\
@media(prefers-color-scheme:dark){.paper{fill:#191919}.ink{fill:#e6e5e3}.dim{fill:#9b9a97}.rule{stroke:#373737}\
.mark{stroke:#e6e5e3}.a{fill:#529cca;stroke:#529cca}.b{fill:#ffa344;stroke:#ffa344}.c{fill:#9a6dd7;stroke:#9a6dd7}\
.d{fill:#4dab9a;stroke:#4dab9a}}";

#[derive(Debug, Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

pub struct Picture {
    out: String,
}

impl Picture {
    /// An empty page with a title, in pixels.
    pub fn new(width: f64, height: f64, title: &str) -> Self {
        let out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
             font-size=\"12\"><style>{STYLE}</style><rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>"
        );
        let mut picture = Self { out };
        let _infallible = write!(
            picture.out,
            "<text class=\"ink\" x=\"16\" y=\"24\" font-size=\"15\">{}</text>",
            escape(title)
        );
        picture
    }

    pub fn text(&mut self, class: &str, anchor: Anchor, (x, y): (f64, f64), text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        let _infallible = write!(
            self.out,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    pub fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let _infallible = write!(
            self.out,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    pub fn bar(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let _infallible = write!(
            self.out,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        );
    }

    pub fn curve(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _infallible = write!(self.out, "<polyline class=\"{class}\" points=\"{}\"/>", points.join(" "));
    }

    pub fn finish(mut self) -> String {
        self.out.push_str("</svg>\n");
        self.out
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
