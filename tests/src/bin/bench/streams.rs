//! Port-forward and attach over SPDY, as kubelets' clients use them: how long a byte takes there and back, and how much
//! goes through. Clients of what failed panic: then this program fails, and with it the measure.

use std::time::Instant;

use berth_cri::v1::{AttachRequest, PortForwardRequest};
use berth_tests::spdy::Spdy;

use crate::{
    Report, Runtime,
    kubelet::{Result, container, done},
    turns::ms,
};

const FORWARD: &str = "portforward.k8s.io";
const STREAMS: &str = "v4.channel.k8s.io";
const PORT: u16 = 8080;
const PIECE: usize = 32 * 1024;
/// Under way at once: less than any buffer on the road that would stop both directions.
const AHEAD: usize = 4;
/// Bytes there and back in each round.
const PINGS: usize = 50;

#[derive(Debug, Default)]
struct Samples {
    ping_ms: Vec<f64>,
    open_ms: Vec<f64>,
    mib_per_second: Vec<f64>,
}

pub async fn all(runtimes: &mut [Runtime], rounds: usize, mib: usize, report: &mut Report) {
    for runtime in runtimes {
        match one(runtime, rounds, mib).await {
            Ok(figures) => {
                for (name, samples) in figures {
                    let mut tell = |what, unit, samples| {
                        report.samples(&format!("{name}: {what}"), &runtime.name, unit, samples)
                    };
                    tell("open", "ms", samples.open_ms);
                    tell("there and back", "ms", samples.ping_ms);
                    tell("throughput", "MiB/s", samples.mib_per_second);
                }
            }
            Err(error) => report.failed("streams", &runtime.name, &error),
        }
    }
}

async fn one(runtime: &mut Runtime, rounds: usize, mib: usize) -> Result<[(&'static str, Samples); 2]> {
    let port = PORT.to_string();
    let (pod, _) = runtime.run("streams", &["/bin/tcp", &port]).await?;
    let measured = async {
        let mut asked = container("cat", &runtime.image, &["/bin/cat"]);
        asked.stdin = true;
        let config = runtime.pod("streams");
        let id = runtime.kubelet.create(&pod, asked, &config).await?;
        runtime.kubelet.start(&id).await?;
        let mut figures = [("port-forward", Samples::default()), ("attach", Samples::default())];
        for _ in 0..rounds {
            forward(runtime, &pod, mib, &mut figures[0].1).await?;
            attach(runtime, &id, mib, &mut figures[1].1).await?;
        }
        Ok(figures)
    };
    let measured = measured.await;
    let removed = runtime.kubelet.remove_pod(&pod).await;
    measured.and_then(|figures| removed.map(|()| figures))
}

async fn forward(runtime: &mut Runtime, pod: &str, mib: usize, samples: &mut Samples) -> Result<()> {
    let began = Instant::now();
    let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![i32::from(PORT)] };
    let url = done("PortForward", runtime.kubelet.runtime.port_forward(request).await)?.url;
    let mut session = Spdy::open(&url, FORWARD).map_err(|status| format!("port-forward: HTTP {status}"))?;
    let (_, data) = session.forward(PORT, "1");
    session.send(data, b"x", false);
    session.take(data, 1);
    samples.open_ms.push(ms(began));
    echo(&mut session, (data, data), mib, samples);
    Ok(())
}

async fn attach(runtime: &mut Runtime, container: &str, mib: usize, samples: &mut Samples) -> Result<()> {
    let began = Instant::now();
    let request =
        AttachRequest { container_id: container.to_owned(), stdin: true, stdout: true, ..Default::default() };
    let url = done("Attach", runtime.kubelet.runtime.attach(request).await)?.url;
    let mut session = Spdy::open(&url, STREAMS).map_err(|status| format!("attach: HTTP {status}"))?;
    let [_, stdin, stdout] = ["error", "stdin", "stdout"].map(|kind| session.of_type(kind));
    session.send(stdin, b"x", false);
    session.take(stdout, 1);
    samples.open_ms.push(ms(began));
    echo(&mut session, (stdin, stdout), mib, samples);
    // So that the next one begins behind an end of line.
    session.send(stdin, b"\n", false);
    session.take(stdout, 1);
    Ok(())
}

fn echo(session: &mut Spdy, (to, from): (u32, u32), mib: usize, samples: &mut Samples) {
    for _ in 0..PINGS {
        let began = Instant::now();
        session.send(to, b"x", false);
        session.take(from, 1);
        samples.ping_ms.push(ms(began));
    }
    let line: Vec<u8> = (0..PIECE).map(|at| if at % 64 == 63 { b'\n' } else { b'x' }).collect();
    let pieces = (mib << 20) / PIECE;
    let began = Instant::now();
    for piece in 0..pieces + AHEAD {
        if piece < pieces {
            session.send(to, &line, false);
        }
        if piece >= AHEAD {
            session.take(from, PIECE);
        }
    }
    samples.mib_per_second.push((pieces * PIECE) as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64());
}
