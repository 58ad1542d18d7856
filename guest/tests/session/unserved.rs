//! The calls of the service that no supervisor makes in these tests.

/// Methods that answer "unimplemented", in the form that `async_trait` gives them.
macro_rules! unserved {
    ($($name:ident($request:ty) -> $answer:ty;)*) => {
        $(
            fn $name<'s, 'f>(
                &'s self,
                _: tonic::Request<$request>,
            ) -> std::pin::Pin<Box<dyn Future<Output = Result<tonic::Response<$answer>, tonic::Status>> + Send + 'f>>
            where
                's: 'f,
                Self: 'f,
            {
                Box::pin(async { Err(tonic::Status::unimplemented("not of a supervisor")) })
            }
        )*
    };
}

pub(crate) use unserved;
