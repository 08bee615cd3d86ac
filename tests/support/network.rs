//! Machines that are network namespaces, joined by a bridge in another one. Needs root.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Networks that this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Runs a command. `Err`: what it said.
pub fn run(command: &str) -> Result<String, String> {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output();
    let output = output.map_err(|error| format!("{command}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The namespaces; deleted when dropped, and with them their interfaces. Number 0 has the bridge.
pub struct Network {
    names: Vec<String>,
}

impl Network {
    /// A network of so many machines, numbered from 1. `Err`: what could not be done.
    pub fn create(machines: usize) -> Result<Network, String> {
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut network = Network { names: Vec::new() };
        for name in (0..=machines).map(|machine| format!("holdfast-{process}-{number}-{machine}")) {
            run(&format!("ip netns add {name}"))?;
            network.names.push(name);
        }
        let hub = network.name(0);
        run(&format!("ip -n {hub} link add bridge type bridge"))?;
        run(&format!("ip -n {hub} addr add {}/24 dev bridge", address(0)))?;
        run(&format!("ip -n {hub} link set bridge up"))?;
        for machine in 1..=machines {
            let name = network.name(machine);
            let ends = format!("to-{machine} type veth peer name net0 netns {name}");
            run(&format!("ip -n {hub} link add {ends}"))?;
            run(&format!("ip -n {hub} link set to-{machine} master bridge up"))?;
            run(&format!("ip -n {name} addr add {}/24 dev net0", address(machine)))?;
            run(&format!("ip -n {name} link set net0 up"))?;
            run(&format!("ip -n {name} link set lo up"))?;
        }
        Ok(network)
    }

    /// Holds every machine to a rate, such as `300mbit`, in both directions.
    pub fn hold_to(&self, rate: &str) -> Result<(), String> {
        for machine in 1..self.names.len() {
            let ends = [(machine, "net0".to_owned()), (0, format!("to-{machine}"))];
            for (within, device) in ends {
                let (name, held) = (self.name(within), format!("tbf rate {rate}"));
                let queue = format!("dev {device} root {held} burst 256kb latency 50ms");
                run(&format!("tc -n {name} qdisc add {queue}"))?;
            }
        }
        Ok(())
    }

    /// Cuts a machine off.
    pub fn cut(&self, machine: usize) {
        self.set(machine, "down");
    }

    /// Ends [`Network::cut`].
    pub fn mend(&self, machine: usize) {
        self.set(machine, "up");
    }

    fn set(&self, machine: usize, state: &str) {
        let set = run(&format!("ip -n {} link set to-{machine} {state}", self.name(0)));
        set.expect("the link is there");
    }

    /// Name of a machine's namespace; 0: the one of the bridge.
    pub fn name(&self, machine: usize) -> &str {
        &self.names[machine]
    }

    /// The place of a machine, for threads of the test.
    pub fn machine(&self, machine: usize) -> Machine {
        Machine { file: Path::new("/run/netns").join(self.name(machine)) }
    }

    /// A command in a machine; its process has the id of the program that it becomes.
    pub fn command(&self, machine: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(machine)]).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = run(&format!("ip netns del {name}")) {
                eprintln!("{error}");
            }
        }
    }
}

/// A namespace that threads of the test can do something in.
#[derive(Clone, Debug)]
pub struct Machine {
    file: PathBuf,
}

impl Machine {
    /// Does something in the namespace. Sockets that it makes stay there.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(&self.file).expect("the namespace is there");
        let inside = || {
            let entered =
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
            entered.expect("enter a namespace, as root");
            act()
        };
        thread::scope(|scope| scope.spawn(inside).join()).expect("it does not panic")
    }
}

/// The address of a machine; 0: of the bridge.
pub fn address(machine: usize) -> String {
    format!("10.93.0.{}", if machine == 0 { 254 } else { machine })
}
