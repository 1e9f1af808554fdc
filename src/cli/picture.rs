//! Pictures: PNG and JPEG to tensors, and to text.

use std::{fs::File, io::BufReader, path::Path};

use crate::{proto, tensor::DType};

/// A picture of 8 bits a value, row by row, the channels of a pixel beside each other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    /// 1 is grey, 3 is red, green and blue.
    pub(super) channels: usize,
    pub(super) values: Vec<u8>,
}

/// Larger pictures are not read.
const MAX_PIXELS: u64 = 64 << 20;

/// Most pixels beside each other that are drawn.
const DRAWN: usize = 40;

const JPEG: [u8; 2] = [0xff, 0xd8];

impl Picture {
    /// Reads a PNG or a JPEG. Transparency is ignored.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let bad = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let mut file = BufReader::new(File::open(path).map_err(|error| bad(&error))?);
        let start = std::io::BufRead::fill_buf(&mut file).map_err(|error| bad(&error))?;
        let read = if start.starts_with(&JPEG) { Self::jpeg(file) } else { Self::png(file) };
        read.map_err(|problem| bad(&problem))
    }

    fn png(file: BufReader<File>) -> Result<Self, String> {
        let mut decoder = png::Decoder::new(file);
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader =
            decoder.read_info().map_err(|error| format!("neither a PNG nor a JPEG picture ({error})"))?;
        let (width, height) = (reader.info().width, reader.info().height);
        size(width, height)?;
        let bytes = reader.output_buffer_size().ok_or("too large")?;
        let mut data = vec![0; bytes];
        let frame = reader.next_frame(&mut data).map_err(|error| error.to_string())?;
        data.truncate(frame.buffer_size());
        let samples = frame.color_type.samples();
        // Of two or four channels the last one is transparency.
        let channels = if samples < 3 { 1 } else { 3 };
        let values = data.chunks_exact(samples).flat_map(|pixel| pixel.iter().take(channels)).copied();
        Ok(Self { width: width as usize, height: height as usize, channels, values: values.collect() })
    }

    fn jpeg(file: BufReader<File>) -> Result<Self, String> {
        let wrong = |error: jpeg_decoder::Error| format!("a JPEG picture that cannot be read ({error})");
        let mut decoder = jpeg_decoder::Decoder::new(file);
        decoder.read_info().map_err(wrong)?;
        let info = decoder.info().ok_or("a JPEG picture without a size")?;
        size(info.width.into(), info.height.into())?;
        let data = decoder.decode().map_err(wrong)?;
        let (channels, values) = match info.pixel_format {
            jpeg_decoder::PixelFormat::L8 => (1, data),
            jpeg_decoder::PixelFormat::L16 => {
                (1, data.chunks_exact(2).filter_map(|v| v.last().copied()).collect())
            }
            jpeg_decoder::PixelFormat::RGB24 => (3, data),
            jpeg_decoder::PixelFormat::CMYK32 => {
                return Err("a JPEG for print (CMYK): save it as RGB".to_owned());
            }
        };
        Ok(Self { width: info.width.into(), height: info.height.into(), channels, values })
    }

    fn pixels(&self) -> impl Iterator<Item = &[u8]> {
        self.values.chunks_exact(self.channels.max(1))
    }

    fn has_colours(&self) -> bool {
        self.pixels().any(|pixel| matches!(pixel, [r, g, b] if r != g || g != b))
    }

    /// 0 (black) to 255 (white), row by row.
    fn grey(&self) -> Vec<f32> {
        let grey = |pixel: &[u8]| match pixel {
            // ITU-R BT.601 weights.
            [r, g, b] => 0.299 * f32::from(*r) + 0.587 * f32::from(*g) + 0.114 * f32::from(*b),
            [v, ..] => f32::from(*v),
            [] => 0.0,
        };
        self.pixels().map(grey).collect()
    }

    /// One channel after the other, 0 to 255.
    fn planes(&self, channels: usize) -> Vec<Vec<f32>> {
        if channels == 3 && self.channels == 3 {
            let plane = |c: usize| self.pixels().filter_map(|p| p.get(c)).map(|v| f32::from(*v)).collect();
            return (0..3).map(plane).collect();
        }
        vec![self.grey(); channels]
    }

    /// The tensor for a model's only input, and what was changed to fit it.
    pub(super) fn tensor(
        &self,
        specs: &[proto::TensorSpec],
    ) -> Result<(proto::Tensor, Option<String>), String> {
        let [spec] = specs else {
            let count = specs.len();
            return Err(format!("the model takes {count} inputs: --image is for models of one. Use --input"));
        };
        let form = Form::of(&spec.shape, self.channels).ok_or_else(|| {
            format!(
                "the model's input has shape {:?}: --image needs [-1, 1 or 3, height, width]. Use --input",
                spec.shape
            )
        })?;
        let (height, width) = (self.height as i64, self.width as i64);
        let fits = |want: i64, have: i64| want == -1 || want == have;
        if !fits(form.height, height) || !fits(form.width, width) {
            return Err(format!(
                "the picture is {width} x {height} pixels, the model takes {} x {}: scale it first",
                form.width, form.height
            ));
        }
        let planes = self.planes(form.channels);
        let values: Vec<f32> = if form.channels_last {
            let pixels = self.width * self.height;
            (0..pixels).flat_map(|at| planes.iter().filter_map(move |plane| plane.get(at)).copied()).collect()
        } else {
            planes.concat()
        };
        let rank = if spec.shape.is_empty() { 4 } else { spec.shape.len() };
        let channels = form.channels as i64;
        let picture = match (form.channels_last, rank) {
            (_, 2) => vec![height, width],
            (true, _) => vec![height, width, channels],
            (false, _) => vec![channels, height, width],
        };
        let mut shape = vec![1; rank.saturating_sub(picture.len())];
        shape.extend(picture);
        let (dtype, raw): (_, Vec<u8>) = if spec.datatype == DType::U8.as_str() {
            (DType::U8, values.iter().map(|value| value.round() as u8).collect())
        } else {
            (DType::F32, values.iter().flat_map(|value| (value / 255.0).to_le_bytes()).collect())
        };
        let note = match (form.channels, self.channels) {
            (1, 3) if self.has_colours() => {
                Some("the picture has colours and the model takes one channel: it was made grey".to_owned())
            }
            (3, 1) => Some(
                "the picture is grey and the model takes three channels: all three are the same".to_owned(),
            ),
            _ => None,
        };
        let (name, datatype) = (spec.name.clone(), dtype.as_str().to_owned());
        Ok((proto::Tensor { name, datatype, shape, raw: raw.into(), ..proto::Tensor::default() }, note))
    }

    /// As text, two characters a pixel, so that it is about as wide as it is high; large pictures are drawn smaller.
    pub(super) fn draw(&self) -> String {
        const SHADES: [char; 10] = [' ', '.', ':', '-', '=', '+', '*', '#', '%', '@'];
        let grey = self.grey();
        let step = self.width.div_ceil(DRAWN).max(1);
        let mut text = String::new();
        for row in grey.chunks(self.width.max(1)).step_by(step) {
            for value in row.iter().step_by(step) {
                let shade = (value / 255.0 * 9.0).round() as usize;
                let c = SHADES.get(shade).copied().unwrap_or('@');
                text.extend([c, c]);
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        text
    }
}

fn size(width: u32, height: u32) -> Result<(), String> {
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!("{width} x {height} pixels are too many"));
    }
    Ok(())
}

/// How a model wants its pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    channels: usize,
    height: i64,
    width: i64,
    channels_last: bool,
}

impl Form {
    /// `[.., C, H, W]`, `[.., H, W, C]`, `[.., H, W]`, or any shape.
    fn of(shape: &[i64], own: usize) -> Option<Self> {
        let form = |channels, height: &i64, width: &i64, channels_last| {
            Some(Self { channels, height: *height, width: *width, channels_last })
        };
        match shape {
            [] => form(own, &-1, &-1, false),
            [.., 1, h, w] => form(1, h, w, false),
            [.., 3, h, w] => form(3, h, w, false),
            [.., h, w, 1] => form(1, h, w, true),
            [.., h, w, 3] => form(3, h, w, true),
            // Of three dimensions the first one is the pictures of a batch.
            [_, .., -1, h, w] => form(own, h, w, false),
            [-1, h, w] | [h, w] => form(1, h, w, false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(datatype: &str, shape: &[i64]) -> proto::TensorSpec {
        proto::TensorSpec {
            name: "i".into(),
            datatype: datatype.into(),
            shape: shape.to_vec(),
            ..Default::default()
        }
    }

    fn picture(width: usize, height: usize, channels: usize, values: &[u8]) -> Picture {
        Picture { width, height, channels, values: values.to_vec() }
    }

    #[test]
    fn draws_dark_as_blank_and_bright_as_dense_and_no_wider_than_a_terminal() {
        assert_eq!(picture(2, 2, 1, &[255, 0, 0, 128]).draw(), "@@\n  ++\n");
        let wide = picture(224, 224, 1, &[255; 224 * 224]).draw();
        assert!(wide.lines().all(|line| line.len() <= 80) && wide.lines().count() >= 30, "{wide}");
    }

    #[test]
    fn a_picture_must_have_the_models_size() {
        let grey = picture(3, 2, 1, &[0; 6]);
        for (declared, expected) in [
            (&[-1, 1, 2, 3][..], &[1, 1, 2, 3][..]),
            (&[1, 2, 3], &[1, 2, 3]),
            (&[-1, -1, -1], &[1, 2, 3]),
            (&[2, 3], &[2, 3]),
            (&[], &[1, 1, 2, 3]),
        ] {
            let (tensor, note) = grey.tensor(&[spec("FP32", declared)]).unwrap();
            assert_eq!((tensor.shape.as_slice(), note), (expected, None), "{declared:?}");
        }
        let error = grey.tensor(&[spec("FP32", &[-1, 1, 8, 8])]).unwrap_err();
        assert!(error.contains("3 x 2") && error.contains("8 x 8"), "{error}");
        assert!(grey.tensor(&[spec("FP32", &[-1, 7, 8, 8])]).unwrap_err().contains("--input"));
        let (sent, _) = picture(3, 1, 1, &[0, 128, 255]).tensor(&[spec("UINT8", &[-1, -1, -1])]).unwrap();
        assert_eq!((sent.datatype.as_str(), sent.raw.to_vec()), ("UINT8", vec![0, 128, 255]));
    }

    #[test]
    fn colours_stay_where_the_model_takes_them_and_are_not_dropped_without_a_word() {
        let colour = picture(2, 1, 3, &[255, 0, 0, 0, 0, 255]);
        let sent = |shape: &[i64]| {
            let (tensor, note) = colour.tensor(&[spec("UINT8", shape)]).unwrap();
            (tensor.shape, tensor.raw.to_vec(), note.is_some())
        };
        assert_eq!(sent(&[-1, 3, -1, -1]), (vec![1, 3, 1, 2], vec![255, 0, 0, 0, 0, 255], false));
        assert_eq!(sent(&[-1, -1, 1, 2]), (vec![1, 3, 1, 2], vec![255, 0, 0, 0, 0, 255], false));
        assert_eq!(sent(&[-1, -1, -1, 3]), (vec![1, 1, 2, 3], vec![255, 0, 0, 0, 0, 255], false));
        assert_eq!(sent(&[1, 1, 2]), (vec![1, 1, 2], vec![76, 29], true), "grey, and it is said");
        let (both, note) = picture(1, 1, 1, &[7]).tensor(&[spec("UINT8", &[3, 1, 1])]).unwrap();
        assert_eq!((both.raw.to_vec(), note.is_some()), (vec![7, 7, 7], true));
        let grey_in_three = picture(1, 1, 3, &[9, 9, 9]);
        assert_eq!(grey_in_three.tensor(&[spec("UINT8", &[1, 1, 1, 1])]).unwrap().1, None);
    }

    #[test]
    fn png_and_jpeg_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 1, 2);
        encoder.set_color(png::ColorType::Rgba);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[1, 2, 3, 255, 4, 5, 6, 0]).unwrap();
        writer.finish().unwrap();
        assert_eq!(Picture::read(&path).unwrap(), picture(1, 2, 3, &[1, 2, 3, 4, 5, 6]));
        let jpeg = Picture::read(Path::new("tests/data/red-blue.jpg")).unwrap();
        assert_eq!((jpeg.width, jpeg.height, jpeg.channels), (16, 8, 3));
        assert!(jpeg.has_colours());
        let first: Vec<_> = jpeg.values.iter().take(3).copied().collect();
        assert!(first[0] > 200 && first[1] < 60 && first[2] < 60, "red: {first:?}");
        std::fs::write(&path, b"GIF89a").unwrap();
        assert!(Picture::read(&path).unwrap_err().contains("neither a PNG nor a JPEG"));
        std::fs::write(&path, [0xff, 0xd8, 0xff, 0xe0, 0, 1]).unwrap();
        assert!(Picture::read(&path).unwrap_err().contains("JPEG picture that cannot be read"));
    }
}
