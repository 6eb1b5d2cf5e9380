//! One thread for each connection of a test's producer.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse::event::VbId;
use dormouse::thread::{self, Cancel, Thread, Until};
use parking_lot::Mutex;

use super::asked::{Asked, Filter, take_frame};
use super::bucket::{Manner, Stream, Vb, Verdict};
use super::scram::Exchange;
use super::{BUCKET_NAME, PASSWORD, Raw, Seen, State, USER};

/// How long a connection waits for its consumer when it has nothing to send.
const WAIT: Duration = Duration::from_millis(1);
/// Features of HELLO that the server knows.
const KNOWN: [u16; 6] = [0x06, 0x07, 0x08, 0x0a, 0x0b, 0x12];
/// How long an answer to a noop may take beside the interval.
const NOOP_GRACE: Duration = Duration::from_secs(10);
/// Bytes that are written before the consumer is listened to again.
const TURN_BYTES: usize = 64 * 1024;

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

pub(super) fn accept(
    listener: &TcpListener,
    state: &Arc<Mutex<State>>,
    tls: Option<&Arc<rustls::ServerConfig>>,
    node: usize,
    stop: &Cancel,
) {
    let mut threads: Vec<Thread<()>> = Vec::new();
    while stop.fin().wait(&Until::within(WAIT)).is_err() {
        let Ok((tcp, _)) = listener.accept() else { continue };
        tcp.set_nonblocking(false).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        let own = tcp.try_clone().unwrap();
        let wire: Box<dyn Wire> = match tls {
            None => Box::new(own),
            Some(config) => {
                let session = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
                Box::new(rustls::StreamOwned::new(session, own))
            }
        };
        let number = {
            let mut state = state.lock();
            if state.down.contains(&node) {
                continue;
            }
            state.connections.push(Seen { is_open: true, node, ..Seen::default() });
            state.connections.len() - 1
        };
        let serve = Serve {
            tcp,
            wire,
            state: Arc::clone(state),
            number,
            node,
            read: Vec::new(),
            streams: BTreeMap::new(),
            step: Step::Greeted(0),
            exchange: None,
            collections: false,
            manner: Manner::default(),
            written: 0,
            noops: 0,
            noop_due: None,
            noop_waits: None,
            slow_from: None,
            cut_from: None,
        };
        let stop = stop.clone();
        threads.push(thread::spawn("test-node", move || serve.run(&stop)).unwrap());
    }
    for thread in threads {
        thread.join(&crate::support::watchdog()).unwrap();
    }
}

/// How far the handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// With the number of requests so far.
    Greeted(u32),
    LoggedIn,
    Selected,
    Open,
}

struct Serve {
    tcp: TcpStream,
    wire: Box<dyn Wire>,
    state: Arc<Mutex<State>>,
    number: usize,
    node: usize,
    read: Vec<u8>,
    streams: BTreeMap<u16, Stream>,
    step: Step,
    exchange: Option<Exchange>,
    collections: bool,
    manner: Manner,
    written: usize,
    noops: u64,
    /// When the next noop is due, and since when one was not answered.
    noop_due: Option<Instant>,
    noop_waits: Option<Instant>,
    /// Since when this node is slow, and what was sent since.
    slow_from: Option<(Instant, usize)>,
    /// What was written when the cut was asked for.
    cut_from: Option<usize>,
}

impl Serve {
    fn run(mut self, stop: &Cancel) {
        while !stop.is_cancelled() {
            if self.state.lock().behaviour.hung_nodes.contains(&self.node) {
                let _ = stop.fin().wait(&Until::within(WAIT));
                continue;
            }
            if self.turn().is_err() {
                break;
            }
        }
        let _ = self.tcp.shutdown(Shutdown::Both);
        let mut state = self.state.lock();
        let seen = &mut state.connections[self.number];
        seen.is_open = false;
        let name = seen.name.clone();
        state.names.remove(&name);
    }

    fn capture(&self, is_from_server: bool, bytes: &[u8]) {
        if let Some(capture) = &mut self.state.lock().capture {
            capture.push(self.number, is_from_server, bytes);
        }
    }

    fn fault(&self, fault: String) {
        self.state.lock().faults.push(fault);
    }

    fn turn(&mut self) -> io::Result<()> {
        if self.state.lock().down.contains(&self.node) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let sends = self.pump()?;
        self.tcp.set_nonblocking(sends)?;
        if !sends {
            self.tcp.set_read_timeout(Some(WAIT))?;
        }
        let mut bytes = [0; 16 * 1024];
        let read = self.wire.read(&mut bytes);
        self.tcp.set_nonblocking(false)?;
        match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                self.capture(false, &bytes[..read]);
                self.read.extend_from_slice(&bytes[..read]);
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
        while let Some(frame) = take_frame(&mut self.read) {
            let asked = Asked::of(&frame).filter(|_| frame[5] == 0 && frame[16..24] == [0; 8]);
            let Some(asked) = asked else {
                self.fault(format!("a request has an odd header: {frame:02x?}"));
                return Err(io::ErrorKind::InvalidData.into());
            };
            self.take(&asked)?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (pieces, cut_after) = {
            let state = self.state.lock();
            (state.behaviour.pieces, state.behaviour.cut_after)
        };
        let mut bytes = bytes;
        let mut is_cut = false;
        if let Some(after) = cut_after {
            let from = *self.cut_from.get_or_insert(self.written);
            let left = (from + after).saturating_sub(self.written);
            if bytes.len() >= left {
                bytes = &bytes[..left];
                is_cut = true;
            }
        }
        for piece in bytes.chunks(pieces.unwrap_or(usize::MAX).max(1)) {
            self.wire.write_all(piece)?;
            self.wire.flush()?;
        }
        self.capture(true, bytes);
        self.written += bytes.len();
        if is_cut {
            self.state.lock().behaviour.cut_after = None;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// Sends what streams have, as far as the window allows. Gives whether there is more.
    fn pump(&mut self) -> io::Result<bool> {
        let mut out = Vec::new();
        let more = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let is_newest = self.number + 1 == state.connections.len();
            if let Some(mut injected) = state.injected.remove(&self.number) {
                out.append(&mut injected);
            }
            let behaviour = &state.behaviour;
            let seen = &mut state.connections[self.number];
            let now = Instant::now();
            let interval = seen.controls.get("set_noop_interval").and_then(|text| text.parse().ok());
            let interval = interval.filter(|_| seen.controls.contains_key("enable_noop"));
            let mut noops = 0;
            if let Some(interval) = interval.map(Duration::from_secs) {
                if self.noop_due.is_some_and(|due| due <= now) {
                    noops = 1;
                }
                if self.noop_due.is_none_or(|due| due <= now) {
                    self.noop_due = Some(now + interval);
                }
                // Machines that run tests stand still at times.
                if self.noop_waits.is_some_and(|since| now.duration_since(since) > interval + NOOP_GRACE) {
                    state.faults.push("a noop is not answered".to_owned());
                    self.noop_waits = None;
                }
            }
            if is_newest && self.step == Step::Open {
                noops += state.noops - self.noops;
                self.noops = state.noops;
            }
            for _ in 0..noops {
                seen.noops_sent += 1;
                self.noop_waits.get_or_insert(now);
                let opaque = 0x8196_9800;
                out.extend(Raw { magic: 0x80, opcode: 0x5c, opaque, ..Raw::default() }.bytes());
            }
            let (turn_bytes, is_slow) = match behaviour.bytes_a_second {
                None => {
                    self.slow_from = None;
                    (TURN_BYTES, false)
                }
                Some(rate) => {
                    let (since, sent) = *self.slow_from.get_or_insert((now, 0));
                    let granted = since.elapsed().as_millis() * rate as u128 / 1000;
                    (usize::try_from(granted).unwrap().saturating_sub(sent).min(TURN_BYTES), true)
                }
            };
            let others = out.len();
            let window = seen.controls.get("connection_buffer_size").and_then(|text| text.parse().ok());
            let window: u64 = window.unwrap_or(u64::MAX);
            let manner = Manner {
                oso: seen.controls.contains_key("enable_out_of_order_snapshots"),
                expirations: seen.controls.contains_key("enable_expiry_opcode"),
                compresses: behaviour.compresses,
                markers_v2: behaviour.markers_v2,
                numbers: behaviour.numbers_streams,
                lag: behaviour.lags_from_zero,
                ..self.manner
            };
            let (vbs, owners) = match state.cut_off.get(&self.node) {
                Some(view) => (&view.vbs, &view.owners),
                None => (&state.vbs, &state.owners),
            };
            let mut more = false;
            seen.is_full = false;
            let is_stalled = |stream: &Stream| behaviour.stalls(stream.vb, stream.start, self.node);
            for stream in self.streams.values_mut().filter(|stream| !is_stalled(stream) || stream.is_ended) {
                let vb = usize::from(stream.vb);
                let is_here = vbs[vb].is_active && owners[vb] == Some(self.node);
                stream.advance(&vbs[vb], is_here, manner);
                if let Some(place) = state.ends.iter().position(|(vb, _)| *vb == stream.vb) {
                    stream.end(state.ends.remove(place).1);
                }
                if stream.collection.is_some_and(|wanted| state.dropped.contains(&wanted)) && !stream.is_ended
                {
                    stream.end(7);
                }
                while let Some(frame) = stream.queued.front() {
                    // Real ones overshoot by a message too.
                    seen.is_full = seen.sent - seen.acked >= window && !behaviour.floods;
                    if seen.is_full || out.len() - others >= turn_bytes {
                        break;
                    }
                    seen.sent += frame.len() as u64;
                    out.extend_from_slice(frame);
                    stream.queued.pop_front();
                }
                more |= !stream.queued.is_empty() && !seen.is_full && !is_slow;
            }
            if let Some((_, sent)) = &mut self.slow_from {
                *sent += out.len() - others;
            }
            self.streams.retain(|_, stream| !stream.is_ended || !stream.queued.is_empty());
            more
        };
        if !out.is_empty() {
            self.write(&out)?;
        }
        Ok(more)
    }

    fn take(&mut self, asked: &Asked<'_>) -> io::Result<()> {
        if asked.magic == 0x81 {
            self.take_answer(asked);
            return Ok(());
        }
        if asked.magic != 0x80 {
            self.fault(format!("magic {:#x}", asked.magic));
        }
        let replaced = self.state.lock().behaviour.answers.get(&asked.opcode).cloned();
        let answer = match replaced {
            Some(None) => None,
            Some(Some((status, value))) => Some((status, value)),
            None if asked.opcode == 0x5d => {
                self.take_ack(asked);
                None
            }
            None => Some(self.judge(asked)),
        };
        match answer {
            Some((status, value)) => self.write(&asked.answer(status, &value)),
            None => Ok(()),
        }
    }

    fn take_answer(&mut self, asked: &Asked<'_>) {
        let mut state = self.state.lock();
        let is_right = asked.opcode == 0x5c && asked.opaque == 0x8196_9800 && asked.vb == 0;
        let seen = &mut state.connections[self.number];
        seen.noops_answered += 1;
        if seen.noops_answered == seen.noops_sent {
            self.noop_waits = None;
        }
        if !is_right || seen.noops_answered > seen.noops_sent {
            state.faults.push(format!("an answer to {:#x} that was not asked for", asked.opcode));
        }
    }

    fn take_ack(&mut self, ack: &Asked<'_>) {
        let mut state = self.state.lock();
        let bytes = if ack.extras.len() == 4 { u64::from(ack.u32(0)) } else { 0 };
        let seen = &mut state.connections[self.number];
        seen.acked += bytes;
        seen.acks.push(bytes);
        let (acked, sent) = (seen.acked, seen.sent);
        if bytes == 0 || acked > sent || ack.opaque != 0 {
            state.faults.push(format!("{bytes} bytes acknowledged, {acked} of {sent}"));
        }
    }

    fn judge(&mut self, asked: &Asked<'_>) -> (u16, Vec<u8>) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        match (asked.opcode, self.step) {
            (0x1f, Step::Greeted(0)) => {
                self.step = Step::Greeted(1);
                let wanted: Vec<u16> =
                    asked.value.chunks(2).map(|two| u16::from_be_bytes([two[0], two[1]])).collect();
                let granted: Vec<u16> =
                    KNOWN.into_iter().filter(|feature| wanted.contains(feature)).collect();
                self.collections = granted.contains(&0x12);
                (0, granted.iter().flat_map(|feature| feature.to_be_bytes()).collect())
            }
            (0x20, Step::Greeted(_)) => (0, self.state.lock().behaviour.mechanisms.as_bytes().to_vec()),
            (0x21, Step::Greeted(_)) if asked.key == b"PLAIN" => {
                let right = format!("\0{USER}\0{PASSWORD}");
                if asked.value != right.as_bytes() {
                    return (0x20, Vec::new());
                }
                self.step = Step::LoggedIn;
                (0, Vec::new())
            }
            (0x21, Step::Greeted(_)) => match Exchange::begin(&text(asked.key), asked.value, USER) {
                Some(exchange) => {
                    let said = exchange.server_first.clone().into_bytes();
                    self.exchange = Some(exchange);
                    (0x21, said)
                }
                None => (0x20, Vec::new()),
            },
            (0x22, Step::Greeted(_)) => {
                let proved = self.exchange.take().and_then(|exchange| exchange.finish(asked.value, PASSWORD));
                match proved {
                    Some(said) => {
                        self.step = Step::LoggedIn;
                        (0, said.into_bytes())
                    }
                    None => (0x20, Vec::new()),
                }
            }
            (0x89, Step::LoggedIn) => {
                if text(asked.key) != BUCKET_NAME {
                    return (0x24, Vec::new());
                }
                self.step = Step::Selected;
                (0, Vec::new())
            }
            (0xb5, Step::Selected | Step::Open) => (0, self.state.lock().map_at(self.node).into_bytes()),
            (0xba, Step::Selected | Step::Open) => {
                (0, self.state.lock().manifest_text_at(self.node).into_bytes())
            }
            (0x50, Step::Selected) => self.open(asked),
            (0x5e, Step::Open) => self.control(&text(asked.key), &text(asked.value)),
            (0x48, Step::Open) => {
                if ![4, 8].contains(&asked.extras.len()) || asked.u32(0) != 1 {
                    self.fault(format!("seqnos are asked for with {:02x?}", asked.extras));
                }
                let collection = (asked.extras.len() == 8).then(|| asked.u32(4));
                let state = self.state.lock();
                let high = |vb: &Vb| collection.map_or(vb.high, |collection| vb.high_of(collection));
                let entry = |(vb, high): (u16, u64)| [&vb.to_be_bytes()[..], &high.to_be_bytes()].concat();
                let here =
                    (0_u16..).zip(state.vbs_at(self.node)).filter(|(vb, _)| state.is_at(*vb, self.node));
                (0, here.map(|(vb, of_vb)| (vb, high(of_vb))).flat_map(entry).collect())
            }
            (0x91, Step::Open) => self.observe(asked),
            (0x54, Step::Open) => {
                let state = self.state.lock();
                if state.is_at(asked.vb, self.node) {
                    (0, state.vbs_at(self.node)[usize::from(asked.vb)].log_bytes())
                } else {
                    (0x07, state.map_at(self.node).into_bytes())
                }
            }
            (0x53, Step::Open) => self.stream(asked),
            (0x52, Step::Open) => match self.streams.get_mut(&asked.vb) {
                Some(stream) => {
                    stream.end(1);
                    let mut state = self.state.lock();
                    state.closes.push(asked.vb);
                    state.closed.insert(asked.vb, Instant::now());
                    (0, Vec::new())
                }
                None => (0x01, Vec::new()),
            },
            (opcode, step) => {
                self.fault(format!("{opcode:#x} comes at {step:?}"));
                (0x04, Vec::new())
            }
        }
    }

    fn open(&mut self, asked: &Asked<'_>) -> (u16, Vec<u8>) {
        let name = String::from_utf8(asked.key.to_vec()).unwrap();
        let mut state = self.state.lock();
        if name.len() > 200 || asked.extras.len() != 8 || asked.u32(4) & 1 == 0 {
            state.faults.push(format!("a connection is opened as {name} with {:02x?}", asked.extras));
        }
        if !state.names.insert(name.clone()) {
            state.faults.push(format!("two connections are called {name}"));
        }
        state.connections[self.number].name = name;
        self.step = Step::Open;
        let flags = asked.u32(4);
        (self.manner.xattrs, self.manner.delete_times) = (flags & 0x4 != 0, flags & 0x20 != 0);
        (0, Vec::new())
    }

    fn observe(&mut self, asked: &Asked<'_>) -> (u16, Vec<u8>) {
        if asked.value.len() != 8 || !asked.extras.is_empty() || !asked.key.is_empty() {
            self.fault("how far a vbucket is on disk is asked for with other parts than it has".to_owned());
            return (0x04, Vec::new());
        }
        let branch = u64::from_be_bytes(asked.value.try_into().unwrap());
        let mut state = self.state.lock();
        state.observes += 1;
        if !state.is_at(asked.vb, self.node) {
            return (0x07, state.map_at(self.node).into_bytes());
        }
        let vb = &state.vbs_at(self.node)[usize::from(asked.vb)];
        let place = vb.log.iter().position(|(known, _)| *known == branch);
        let mut told = vec![u8::from(place != Some(0))];
        told.extend(asked.vb.to_be_bytes());
        let mut numbers = vec![vb.log[0].0, vb.persisted, vb.high];
        match place {
            None => return (0x01, Vec::new()),
            Some(0) => {}
            Some(place) => numbers.extend([branch, vb.log[place - 1].1]),
        }
        told.extend(numbers.into_iter().flat_map(u64::to_be_bytes));
        (0, told)
    }

    fn control(&mut self, name: &str, value: &str) -> (u16, Vec<u8>) {
        let is_number = value.parse::<u32>().is_ok_and(|number| number > 0);
        let is_right = match name {
            "connection_buffer_size" | "set_noop_interval" => is_number,
            "enable_noop"
            | "enable_expiry_opcode"
            | "send_stream_end_on_client_close_stream"
            | "enable_sync_writes"
            | "supports_hifi_MFU" => value == "true",
            "consumer_name" => !value.is_empty(),
            "set_priority" => ["high", "medium", "low"].contains(&value),
            "enable_out_of_order_snapshots" => value == "true_with_seqno_advanced",
            _ => false,
        };
        if !is_right {
            self.fault(format!("{name} is set to {value}"));
            // Real ones put up with these two.
            let passes = matches!((name, value), ("enable_noop", _) | ("set_noop_interval", "0"));
            return (if passes { 0 } else { 0x04 }, Vec::new());
        }
        self.state.lock().connections[self.number].controls.insert(name.to_owned(), value.to_owned());
        (0, Vec::new())
    }

    fn stream(&mut self, asked: &Asked<'_>) -> (u16, Vec<u8>) {
        if asked.extras.len() != 48 || !asked.key.is_empty() {
            self.fault("a stream is asked for with other parts than it has".to_owned());
            return (0x04, br#"{"error":{"context":"Request must have extras of 48 bytes"}}"#.to_vec());
        }
        let numbers = [8, 16, 24, 32, 40].map(|at| asked.number(at));
        let [start, end, ..] = numbers;
        let mut state = self.state.lock();
        let state = &mut *state;
        state.requests.push((VbId(asked.vb), start));
        if let Some(closed) = state.closed.remove(&asked.vb) {
            state.stood_still.push((asked.vb, closed.elapsed()));
        }
        let has_noop = state.connections[self.number].controls.contains_key("enable_noop");
        if self.collections && !has_noop {
            state.faults.push("a stream is asked for without noops".to_owned());
            return (0x83, Vec::new());
        }
        if self.streams.contains_key(&asked.vb) {
            state.faults.push(format!("vbucket {} is asked for twice", asked.vb));
            return (0x02, Vec::new());
        }
        let Filter { collection, manifest_uid } = match Filter::of(asked.value) {
            Ok(filter) => filter,
            Err(fault) => {
                state.faults.push(fault);
                return (0x04, br#"{"error":{"context":"value is no filter"}}"#.to_vec());
            }
        };
        let (known_uid, known) = state.manifest_at(self.node);
        let behind = || format!("{{\"manifest_uid\":\"{known_uid:x}\"}}").into_bytes();
        // As recorded: who begins is not asked what it knows.
        if start > 0 && manifest_uid.is_some_and(|uid| uid > known_uid) {
            state.manifests_ahead += 1;
            return (0x8b, behind());
        }
        if collection.is_some_and(|wanted| !known.contains(&wanted)) {
            return (0x88, behind());
        }
        let is_here = state.is_at(asked.vb, self.node);
        let vb = state.vbs_at(self.node).get(usize::from(asked.vb));
        let Some(vb) = vb.filter(|_| is_here || asked.u32(0) & 0x10 == 0) else {
            return (0x07, state.map_at(self.node).into_bytes());
        };
        match vb.judge(numbers) {
            Verdict::Refuse(status, value) => {
                state.rollbacks += u64::from(status == 0x23);
                if status == 0x22 {
                    state.faults.push(format!("vbucket {} is asked for from {numbers:?}", asked.vb));
                }
                (status, value)
            }
            Verdict::Begin => {
                let branch = vb.log[0].0;
                let stream = Stream::new(asked.vb, asked.opaque, (start, end), collection, branch);
                self.streams.insert(asked.vb, stream);
                (0, vb.log_bytes())
            }
        }
    }
}
