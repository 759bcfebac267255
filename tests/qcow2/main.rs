//! The qcow2 driver from outside: event sequences, and round trips with the real qemu-img.

mod damage;
mod events;
mod oracle;
mod rig;
mod speed;
