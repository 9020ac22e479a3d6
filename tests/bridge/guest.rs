// A guest in Rust that knows nothing but the published layouts: discovery, a variable round trip, an
// attestation. No crates; `rustc --edition 2021 guest.rs`. Argument: the socket's path.

use std::ffi::c_void;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

#[repr(C)]
struct Iovec { base: *const c_void, len: usize }
#[repr(C)]
struct Msghdr { name: *const c_void, namelen: u32, iov: *const Iovec, iovlen: usize, control: *const c_void, controllen: usize, flags: i32 }

extern "C" {
    fn memfd_create(name: *const i8, flags: u32) -> i32;
    fn ftruncate(fd: i32, length: i64) -> i32;
    fn fcntl(fd: i32, command: i32, argument: i32) -> i32;
    fn mmap(address: *mut c_void, length: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> *mut c_void;
    fn sendmsg(fd: i32, message: *const Msghdr, flags: i32) -> isize;
}

const BASE: u64 = 0x100000;
const SIZE: usize = 1 << 20;

struct Guest { socket: UnixStream, ram: *mut u8, tag: u32 }

impl Guest {
    fn ask(&mut self, kind: u16, payload: &[u8], fd: Option<i32>) -> Vec<u8> {
        self.tag += 1;
        let mut message = Vec::new();
        message.extend(b"SVB1");
        message.extend(kind.to_le_bytes());
        message.extend(0u16.to_le_bytes());
        message.extend((payload.len() as u32).to_le_bytes());
        message.extend(self.tag.to_le_bytes());
        message.extend(payload);
        match fd {
            None => self.socket.write_all(&message).unwrap(),
            Some(fd) => {
                // one cmsghdr: length 20, SOL_SOCKET 1, SCM_RIGHTS 1, the descriptor, padding
                let mut control = [0u8; 24];
                control[..8].copy_from_slice(&20u64.to_le_bytes());
                control[8..12].copy_from_slice(&1u32.to_le_bytes());
                control[12..16].copy_from_slice(&1u32.to_le_bytes());
                control[16..20].copy_from_slice(&fd.to_le_bytes());
                let iov = Iovec { base: message.as_ptr().cast(), len: message.len() };
                let head = Msghdr { name: std::ptr::null(), namelen: 0, iov: &iov, iovlen: 1, control: control.as_ptr().cast(), controllen: 24, flags: 0 };
                let sent = unsafe { sendmsg(self.socket.as_raw_fd(), &head, 0) };
                assert_eq!(sent, message.len() as isize);
            }
        }
        let mut header = [0u8; 16];
        self.socket.read_exact(&mut header).unwrap();
        let length = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        let mut reply = vec![0u8; length];
        self.socket.read_exact(&mut reply).unwrap();
        let flags = u16::from_le_bytes(header[6..8].try_into().unwrap());
        assert_eq!(&header[..4], b"SVB1");
        assert_eq!(flags, 1, "{}", String::from_utf8_lossy(&reply));
        assert_eq!(u32::from_le_bytes(header[12..16].try_into().unwrap()), self.tag);
        reply
    }

    fn poke(&self, gpa: u64, data: &[u8]) {
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.ram.add((gpa - BASE) as usize), data.len()) }
    }

    fn peek(&self, gpa: u64, size: usize) -> Vec<u8> {
        let mut out = vec![0u8; size];
        unsafe { std::ptr::copy_nonoverlapping(self.ram.add((gpa - BASE) as usize), out.as_mut_ptr(), size) }
        out
    }

    // RAX, RCX, RDX, R8 after a call
    fn call(&mut self, rax: u64, rcx: u64, rdx: u64, r8: u64) -> [u64; 4] {
        let pending = unsafe { std::sync::atomic::AtomicU8::from_ptr(self.ram) };
        pending.store(1, std::sync::atomic::Ordering::SeqCst);
        let mut payload = vec![0u8; 0xA8];
        payload[4] = 2;
        payload[8..16].copy_from_slice(&0x403u64.to_le_bytes());
        for (index, value) in [(0usize, rax), (2, rcx), (3, rdx), (8, r8)] {
            payload[16 + 8 * index..24 + 8 * index].copy_from_slice(&value.to_le_bytes());
        }
        let reply = self.ask(5, &payload, None);
        assert_eq!(pending.swap(0, std::sync::atomic::Ordering::SeqCst), 0, "the SVSM did not run");
        [0usize, 2, 3, 8].map(|index| u64::from_le_bytes(reply[16 + 8 * index..24 + 8 * index].try_into().unwrap()))
    }

    fn variable(&mut self, function: u64, name: &str, data: &[u8]) -> (u64, Vec<u8>) {
        let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let mut body = Vec::new();
        body.extend(function.to_le_bytes());
        body.extend(0u64.to_le_bytes());
        body.extend(b"a rust guid, 16b");
        body.extend((data.len() as u64).to_le_bytes());
        body.extend((name.len() as u64).to_le_bytes());
        body.extend(7u32.to_le_bytes());
        body.extend(&name);
        body.extend(data);
        let mut message = vec![0x33, 0xd5, 0x32, 0xed, 0xe6, 0x99, 0x09, 0x42, 0x9c, 0xc0, 0x2d, 0x72, 0xcd, 0xd9, 0x98, 0xa7];
        message.extend((body.len() as u64).to_le_bytes());
        message.extend(body);
        self.poke(BASE + 0x10000, &message);
        assert_eq!(self.call(4 << 32 | 1, BASE + 0x10000, 0x10000, 0)[0], 0);
        let after = self.peek(BASE + 0x10000, message.len());
        let status = u64::from_le_bytes(after[32..40].try_into().unwrap());
        let size = u64::from_le_bytes(after[56..64].try_into().unwrap()) as usize;
        (status, after[76 + name.len()..76 + name.len() + size.min(data.len())].to_vec())
    }
}

fn main() {
    let socket = UnixStream::connect(std::env::args().nth(1).expect("usage: guest SOCKET")).unwrap();
    let (ram, fd) = unsafe {
        let fd = memfd_create(b"guest-ram\0".as_ptr().cast(), 3);
        assert!(fd >= 0 && ftruncate(fd, SIZE as i64) == 0 && fcntl(fd, 1033, 2 | 4) == 0);
        (mmap(std::ptr::null_mut(), SIZE, 3, 1, fd, 0).cast::<u8>(), fd)
    };
    let mut guest = Guest { socket, ram, tag: 0 };
    let mut hello = vec![0u8; 0x40];
    hello[..4].copy_from_slice(&[1, 0, 1, 0]);
    hello[4] = 3;
    hello[0x10] = 2;
    hello[0x14] = 1;
    assert_eq!(guest.ask(1, &hello, None).len(), 0x40);
    let mut add = Vec::new();
    for value in [BASE, SIZE as u64, 0] { add.extend(value.to_le_bytes()); }
    add.extend([1, 0, 0, 0, 1, 0, 0, 0]);
    guest.ask(2, &add, Some(fd));
    let mut vcpu = vec![0u8; 0x18];
    vcpu[8..16].copy_from_slice(&BASE.to_le_bytes());
    vcpu[16] = 1;
    guest.ask(4, &vcpu, None);

    assert_eq!(guest.call(6, 4 << 32 | 1, 0, 0)[1], 0x100000001);
    println!("discovered UEFI MM");
    assert_eq!(guest.variable(3, "FromRust", b"value").0, 0);
    assert_eq!(guest.variable(1, "FromRust", &[0; 32]), (0, b"value".to_vec()));
    println!("variable round trip");

    let mut operation = vec![0u8; 0x40];
    for (at, value) in [(0usize, BASE + 0x30000), (0x10, BASE + 0x2000), (0x20, BASE + 0x40000)] {
        operation[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    operation[0x18] = 64;
    guest.poke(BASE + 0x1000, &operation);
    let sizes = guest.call(1 << 32, BASE + 0x1000, u64::MAX, u64::MAX);
    assert_eq!(sizes[0], 0x80000005);
    operation[8..12].copy_from_slice(&(sizes[3] as u32).to_le_bytes());
    operation[0x28..0x2c].copy_from_slice(&(sizes[1] as u32).to_le_bytes());
    guest.poke(BASE + 0x1000, &operation);
    let done = guest.call(1 << 32, BASE + 0x1000, u64::MAX, u64::MAX);
    assert_eq!(done, [0, sizes[1], 0, 0x4A0]);
    let table = guest.peek(BASE + 0x40000, 24);
    assert_eq!(u32::from_le_bytes(table[16..20].try_into().unwrap()) as u64, sizes[1]);
    println!("attested {} services", table[20]);
}
