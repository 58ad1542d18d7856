mod packet;
